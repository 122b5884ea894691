"""The losses of one batch, clip by clip (paper, section 3.3), as a module of its own: what wraps a network for many
devices then sees every use of its weights. ``Trainer`` weights and adds them up; ``plan.py`` draws the times.

Legend: B batch, L text tokens, V vocabulary rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..flow.continuous import interpolate, velocity_target
from ..flow.discrete import MixturePath, token_log_likelihood
from ..flow.embedding import embed_tokens, embedding_losses
from ..flow.time import model_time_from_sigma, tau_from_sigma
from ..model import Hooks, Pass, PassOptions, UniViGU
from .config import Loss
from .plan import Batch

# The generalised KL's rate kappa' / (1 - kappa) grows without bound towards the words' end of the path.
LATEST_TAU = 0.99


class Losses(NamedTuple):
    """Per clip, float32 ``[B]``: mean squared velocity error; the text's loss, nats a token (embedding flow: its
    velocity error plus the weighted anchor)."""

    video: Tensor
    text: Tensor


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention as two matrix products: on a CPU its backward pass is several times faster than the fused one's at a
    few dozen tokens."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask[:, None]
    out: Tensor = rearrange(scores.softmax(-1).to(v.dtype) @ v, "b h n d -> b n (h d)")
    return out


def generalised_kl(
    logits_BLV: Tensor, target_BL: Tensor, current_BL: Tensor, tau_B: Tensor, path: MixturePath
) -> Tensor:
    """The path's generalised KL ``[B,L]`` (arXiv 2412.03487, the mixture path's bound on the likelihood).

    Rate kappa'/(1-kappa) times: 1 - p(x1) where the token is already x1; -log p(x1) - p(x_t) where it is not.
    """
    tau = tau_B.clamp(max=LATEST_TAU)
    kappa = tau.pow(path.exponent)
    rate = path.exponent * tau.clamp(min=1e-4).pow(path.exponent - 1) / (1 - kappa)
    log_target = token_log_likelihood(logits_BLV, target_BL)
    here = target_BL == current_BL
    log_current = torch.where(here, log_target, token_log_likelihood(logits_BLV, current_BL))
    loss = torch.where(here, 1 - log_target.exp(), -log_target - log_current.exp())
    return rate[:, None] * loss


class Objective(nn.Module):
    """Network in, losses out. ``checkpointing`` recomputes each block in the backward pass."""

    def __init__(self, model: UniViGU, loss: Loss, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.path = MixturePath(model.config.kappa_exponent)
        self.hooks = Hooks(block=_recomputed) if checkpointing else Hooks()

    def forward(self, batch: Batch) -> Losses:
        video, text = self._noisy(batch)
        velocity, logits = self._predict(batch, video, text)
        error = (velocity.float() - velocity_target(batch.latents, batch.noise)).square()
        video_loss = error.flatten(1).mean(1)
        if batch.free is not None:
            free = batch.free.expand_as(error)
            video_loss = (error * free).flatten(1).sum(1) / free.flatten(1).sum(1).clamp(min=1)
        if logits is None:
            return Losses(video_loss, torch.zeros_like(video_loss))
        embeds = self.model.config.text_flow == "embedding"
        with torch.autocast(error.device.type, enabled=False):
            nats = self._embedding(logits, text, batch) if embeds else self._discrete(logits, batch)
        return Losses(video_loss, (nats * batch.weight).sum(1) / batch.weight.sum(1))

    def _noisy(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both streams at the batch's times: video ``[B,C,F,H,W]`` and text, ids ``[B,L]`` or rows ``[B,L,D]``."""
        sigma = batch.sigma_video[:, None, None, None, None]
        video = interpolate(batch.latents, batch.noise, sigma if batch.free is None else sigma * batch.free)
        if not batch.text.shape[1] or self.model.config.text_flow == "discrete":
            return video, batch.text
        rows = embed_tokens(self.model.token_embedding.weight, batch.target)
        return video, interpolate(rows, batch.text_noise, batch.sigma_text[:, None, None])

    def _predict(
        self, batch: Batch, video: Tensor, text: Tensor, *, model: UniViGU | None = None, logits: bool | slice = True
    ) -> tuple[Tensor, Tensor | None]:
        """One pass of the network, or of ``model``: the velocity, and the logits where there is a text to speak of."""
        has_text = batch.text.shape[1] > 0
        clean = batch.makes_video == 0 if batch.video_clean is None else batch.video_clean
        found: tuple[Tensor, Tensor | None] = (model or self.model)(
            video,
            text if has_text else None,
            model_time_from_sigma(batch.sigma_video),
            model_time_from_sigma(batch.sigma_text),
            batch.context,
            batch.mask if has_text and batch.hides else None,
            PassOptions(want_logits=logits if has_text else False, video_clean=clean, hooks=self.hooks),
        )
        return found

    def _discrete(self, logits: Tensor, batch: Batch) -> Tensor:
        # The mask token, where there is one, has its share here: it is no data, so training takes that share to
        # nothing, for whoever draws words without forbidding it.
        if self.loss.discrete == "cross_entropy":
            return -token_log_likelihood(logits, batch.target)
        return generalised_kl(logits, batch.target, batch.text, tau_from_sigma(batch.sigma_text), self.path)

    def _embedding(self, velocity: Tensor, z: Tensor, batch: Batch) -> Tensor:
        """Velocity error and anchor per token ``[B,L]``, see ``flow/embedding.py``."""
        matrix = self.model.token_embedding.weight
        error, anchor = embedding_losses(velocity, z, batch.target, matrix, batch.text_noise, batch.sigma_text)
        return error + self.loss.anchor * anchor


def _recomputed(_: int, run: Any, x: Tensor, at: Pass) -> Tensor:
    out: Tensor = checkpoint(run, x, at, use_reentrant=False)
    return out
