"""The Uni-ViGU network: Wan2.1's video transformer with a text stream beside it (arXiv 2604.08121, section 3).

Legend: B batch, C latent channels, F H W latent frames, height, width, V video tokens, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import UniViGUError
from .attention import Attention, default_attention
from .block import Call, JointBlock, Kept, Streams
from .embed import time_features
from .heads import TextHead, VideoHead
from .kv_cache import VideoCache
from .memory import video_tokens
from .modulation import Modulate, modulate
from .rope import Rotate, rotate, rotate_in_place, text_rotations, turns, video_rotations


class Prediction(NamedTuple):
    """What the network says about each stream.

    ``velocity`` ``[B,C,F,H,W]``: noise minus data, per unit of sigma. ``logits`` ``[B,T,V]``: unnormalised log
    posterior of the clean tokens; with the embedding flow a velocity ``[B,T,D]`` instead. A part that was not asked
    for is None.
    """

    velocity: Tensor | None
    logits: Tensor | None


@dataclass(frozen=True)
class Hooks:
    """What a host program may change in one forward pass; None and the defaults change nothing.

    attention, cross_attention   in place of the network's own, see ``model/attention.py``
    block                        ``block(index, run, call) -> Streams`` stands around each block; ``run(call)`` is the
                                 block itself
    rotate, modulate             in place of ``model/rope.py``'s and ``model/modulation.py``'s: where there are fused
                                 kernels for them; a ``rotate`` may write over the tensor it is given and give it back
    in_place                     whether blocks may write over their input where no gradient may be asked for; None:
                                 if nothing stands around them
    text_alone                   whether the last block may leave the video as it is where its velocity is not wanted
    scale, shift                 of the video's rotary positions along time, height and width
    """

    attention: Attention | None = None
    cross_attention: Attention | None = None
    block: Callable[[int, Callable[[Call], Streams], Call], Streams] | None = None
    rotate: Rotate = rotate_in_place
    modulate: Modulate = modulate
    text_alone: bool = True
    in_place: bool | None = None
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class PassOptions:
    """What one forward pass is asked for.

    want_velocity, want_logits   leave a head out where the job has no use for it; a slice gives the logits of these
                                 rows of the batch alone
    video_clean                  whether the video is held clean, as its stream says: of all rows, or ``[B]`` boolean
    cache                        for a video that is held clean: an empty one is filled in passing; with a full one the
                                 text runs alone beside what was kept, whatever ``video`` holds, and there is no
                                 velocity. One clip's serves any number of rows
    hooks                        see ``Hooks``
    """

    want_velocity: bool = True
    want_logits: bool | slice = True
    video_clean: bool | Tensor = False
    cache: VideoCache | None = None
    hooks: Hooks = Hooks()


def _weight_dtype(layer: nn.Module) -> torch.dtype:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.dtype


class UniViGU(nn.Module):
    """The joint video and text transformer.

    Layers come from ``operations`` (default ``torch.nn``; ComfyUI passes its own, which bring quantisation and
    offload), attention from ``attention`` (see ``model/attention.py``). With an empty text stream the network is
    plain Wan2.1, bit for bit.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        operations: Any = nn,
        attention: Attention | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention or default_attention()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dim = config.dim
        self.config = config
        # Plain layers compute in the dtype of their weights; injected ones cast, and follow the input as in ComfyUI.
        self.follows_weights = operations is nn

        # inputs; the patches are made in float32 or better, as in ComfyUI's Wan
        patch_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.patch_embedding = operations.Conv3d(
            config.in_dim,
            dim,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            device=device,
            dtype=patch_dtype,
        )
        self.token_embedding = operations.Embedding(config.token_rows, dim, **factory)
        self.text_embedding = nn.Sequential(
            operations.Linear(config.text_dim, dim, **factory),
            nn.GELU(approximate="tanh"),
            operations.Linear(dim, dim, **factory),
        )

        # clocks, one per stream
        def time_mlp() -> tuple[nn.Sequential, nn.Sequential]:
            embedding = nn.Sequential(
                operations.Linear(config.freq_dim, dim, **factory), nn.SiLU(), operations.Linear(dim, dim, **factory)
            )
            return embedding, nn.Sequential(nn.SiLU(), operations.Linear(dim, 6 * dim, **factory))

        self.time_embedding, self.time_projection = time_mlp()
        self.time_embedding_t, self.time_projection_t = time_mlp()

        self.blocks = nn.ModuleList(JointBlock(config, operations, **factory) for _ in range(config.num_layers))
        self.head = VideoHead(config, operations, **factory)
        self.text_head = TextHead(config, operations, **factory)

    def forward(
        self,
        video: Tensor,
        text: Tensor | None,
        time_video: Tensor,
        time_text: Tensor,
        context: Tensor,
        text_mask: Tensor | None = None,
        options: PassOptions = PassOptions(),
    ) -> Prediction:
        """Predict both streams.

        Args:
            video: latents ``[B,C,F,H,W]``; H and W multiples of the patch size.
            text: token ids ``[B,T]`` (discrete flow) or text vectors ``[B,T,D]`` (embedding flow); None or T = 0
                runs the plain Wan network.
            time_video, time_text: ``[B]``, Wan's clock: 0 is clean, 1000 is pure noise. A held-clean stream has 0.
            context: prompt condition ``[B,S,text_dim]``, hidden states of the text encoder.
            text_mask: boolean ``[B,T]``, true for real tokens; padded ones are hidden from everybody.
            options: which heads, cache and hooks, see ``PassOptions``.

        Raises:
            UniViGUError: a shape does not fit the network, or the cache.
        """
        text = self._check(video, text, time_video, time_text, context, text_mask)
        cache, hooks = options.cache, options.hooks
        alone = cache is not None and cache.filled
        if cache is not None and cache.filled:
            tokens = video_tokens(video.shape[2:], self.config)
            if cache.rows not in (1, video.shape[0]) or cache.tokens != tokens:
                raise UniViGUError(
                    f"the cache holds {cache.rows} clip(s) of {cache.tokens} tokens; this pass has {video.shape[0]} of "
                    f"{tokens}: a cache serves the clips that it was filled with; clear it or take another"
                )
        elif cache is not None:
            cache.clear()  # of a pass that broke off
        dtype, precise = self.computes_in(video), torch.promote_types(video.dtype, torch.float32)
        if self.follows_weights:
            precise = _weight_dtype(self.patch_embedding)
        grid: tuple[int, int, int] = (0, 0, 0)
        patches = video.new_zeros(video.shape[0], self.config.dim, *grid, dtype=dtype)
        if not alone:
            patches = self.patch_embedding(video.to(precise)).to(dtype)
            grid = tuple(patches.shape[2:])  # type: ignore[assignment]
        words = text.to(dtype) if text.is_floating_point() else self.embed(text, dtype)
        # What the convolution leaves is channels first in memory; every operation after it would carry that on.
        patches = rearrange(patches, "b d f h w -> b (f h w) d")
        in_place = hooks.block is None if hooks.in_place is None else hooks.in_place
        if in_place and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            x = Streams.of(torch.cat([patches, words], 1), words.shape[1])
        else:
            x, in_place = Streams(patches.contiguous(), words), False
        del patches, words  # the blocks need the room
        count = cache.tokens if cache is not None and alone else x.video.shape[1]
        context = self.text_embedding(context.to(dtype))

        freq_dim = self.config.freq_dim
        if self.config.time_rounding == "bfloat16":
            time_video, time_text = time_video.bfloat16(), time_text.bfloat16()
        time_v = self.time_embedding(time_features(time_video, freq_dim).to(dtype))
        time_t = self.time_embedding_t(time_features(time_text, freq_dim).to(dtype))
        times = torch.stack([self.time_projection(time_v), self.time_projection_t(time_t)]).unflatten(2, (6, -1))
        e = Streams(times[0], times[1], times)

        head_dim, device = self.config.head_dim, video.device
        rotations = Streams(
            video_rotations(grid, head_dim, device, hooks.scale, hooks.shift),
            text_rotations(text.shape[1], head_dim, device, self.config.text_inv_freq),
        )
        if hooks.rotate in (rotate, rotate_in_place):
            both = torch.cat([turns(rotations.video), turns(rotations.text)])
            rotations = Streams(both[: len(rotations.video)], both[len(rotations.video) :], both)
        key_mask = None
        if text_mask is not None:
            hidden = torch.zeros(text_mask.shape, dtype=dtype, device=device)
            hidden = hidden.masked_fill(~text_mask.bool(), torch.finfo(dtype).min)
            key_mask = F.pad(hidden, (count, 0))[:, None]  # the video's keys come first and are all seen
        one_way = cache is not None and not cache.reads_text
        video_mask: Tensor | None = None
        if self.config.v2t_attention == "one_way" and text.shape[1] and not one_way and not alone:
            clean = options.video_clean
            if isinstance(clean, Tensor):
                video_mask = self._video_mask(clean, key_mask, x)
            else:
                one_way = clean

        attention = hooks.attention or self.attention
        cross_attention = hooks.cross_attention or attention
        for index, block in enumerate(self.blocks):
            run = partial(block, attention=attention, cross_attention=cross_attention)
            kept = None if cache is None else Kept(cache, index, len(self.blocks))
            last = index == len(self.blocks) - 1
            text_alone = last and not options.want_velocity and hooks.text_alone and text.shape[1] > 0
            call = Call(
                x,
                e,
                rotations,
                context,
                key_mask,
                one_way=one_way,
                video_mask=video_mask,
                kept=kept,
                rotate=hooks.rotate,
                modulate=hooks.modulate,
                text_alone=text_alone,
                in_place=in_place,
            )
            x = run(call) if hooks.block is None else hooks.block(index, run, call)

        velocity = self._unpatchify(self.head(x.video, time_v), grid) if options.want_velocity and not alone else None
        if options.want_logits is False:
            return Prediction(velocity, None)
        rows = slice(None) if options.want_logits is True else options.want_logits
        return Prediction(velocity, self.text_head(x.text[rows], time_t[rows]))

    def _video_mask(self, clean: Tensor, key_mask: Tensor | None, x: Streams) -> Tensor:
        """What hides the text ``[B,1,V+T]`` from the video's queries in the rows that are ``clean`` ``[B]``."""
        lowest = torch.finfo(x.video.dtype).min
        hidden = torch.zeros(clean.shape[0], 1, x.text.shape[1], dtype=x.video.dtype, device=clean.device)
        hidden = F.pad(hidden.masked_fill(clean[:, None, None], lowest), (x.video.shape[1], 0))
        return hidden if key_mask is None else torch.minimum(hidden, key_mask)

    def computes_in(self, video: Tensor) -> torch.dtype:
        """The dtype of a pass over this ``video``."""
        return _weight_dtype(self.token_embedding) if self.follows_weights else video.dtype

    def video_cache(self, **settings: Any) -> VideoCache | None:
        """An empty cache for ``forward``, None from networks that cannot use one. ``settings`` as of ``VideoCache``."""
        return VideoCache(**settings)

    def embed(self, tokens: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of E for token ids, in ``dtype`` (None: as they are stored)."""
        rows = self.token_embedding(tokens)
        return rows if dtype is None else rows.to(dtype)

    def _unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        f, h, w = grid
        p, q, r = self.config.patch_size
        return rearrange(x, "b (f h w) (p q r c) -> b c (f p) (h q) (w r)", f=f, h=h, w=w, p=p, q=q, r=r)

    def _check(
        self,
        video: Tensor,
        text: Tensor | None,
        time_video: Tensor,
        time_text: Tensor,
        context: Tensor,
        text_mask: Tensor | None,
    ) -> Tensor:
        config = self.config
        if text is None:
            text = torch.zeros(video.shape[0], 0, dtype=torch.long, device=video.device)
        if video.ndim != 5 or video.shape[1] != config.in_dim:
            raise UniViGUError(
                f"video latent has shape {list(video.shape)}; expected [batch, {config.in_dim}, frames, height, width]"
            )
        for name, size, patch in zip(("frames", "height", "width"), video.shape[2:], config.patch_size, strict=True):
            if size == 0 or size % patch:
                raise UniViGUError(
                    f"video latent has {name} {size}, which is off the model's grid: use a multiple of {patch} "
                    f"(in pixels: sides that are multiples of {8 * config.patch_size[1]}, 4n+1 frames)"
                )
        if context.ndim != 3 or context.shape[-1] != config.text_dim:
            raise UniViGUError(
                f"prompt condition has shape {list(context.shape)}; expected [batch, rows, {config.text_dim}]: "
                "it comes from a text encoder of another width; load the encoder this checkpoint was trained with"
            )
        if config.text_flow == "embedding":
            expected = f"vectors [batch, tokens, {config.dim}]"
            fits = text.is_floating_point() and text.ndim == 3 and text.shape[-1] == config.dim
            fits = fits or (text.ndim == 2 and not text.shape[1])  # an empty stream has no kind
        else:
            expected = "token ids [batch, tokens]"
            fits = text.ndim == 2 and not text.is_floating_point()
        if not fits:
            raise UniViGUError(
                f"text stream has shape {list(text.shape)} ({text.dtype}); this checkpoint's text flow is "
                f"{config.text_flow}: expected {expected}"
            )
        rows = {"text stream": text, "prompt condition": context, "video time": time_video, "text time": time_text}
        for name, given in rows.items():
            if given.shape[0] != video.shape[0]:
                raise UniViGUError(
                    f"the {name} has a batch of {given.shape[0]}, the video one of {video.shape[0]}; expected the same"
                )
        if text_mask is not None and text_mask.shape != text.shape[:2]:
            raise UniViGUError(
                f"text mask has shape {list(text_mask.shape)}; the text stream has {list(text.shape[:2])}"
            )
        return text
