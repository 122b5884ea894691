"""The Uni-ViGU network: Wan2.1's video transformer with a text stream beside it (arXiv 2604.08121, section 3).

Legend: B batch, C latent channels, F H W latent frames, height, width, V video tokens, T text tokens, D width.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Attention, default_attention
from .block import JointBlock, Pass
from .inputs import check_inputs, time_features
from .kv_cache import VideoCache
from .modulation import Head
from .options import EVERYTHING, Hooks, PassOptions, Prediction
from .rope import matrices, rotations, text_angles, video_angles
from .streams import join

TEXT_NORM_EPS = 1e-5


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
        self.config, self.attention = config, attention or default_attention()
        # Plain layers compute in the dtype of their weights; injected ones cast, and follow the input as in ComfyUI.
        self.follows_weights = operations is nn
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, patch = config.dim, config.patch_size

        def mlp(width: int, activation: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                operations.Linear(width, dim, **factory), activation, operations.Linear(dim, dim, **factory)
            )

        def time_projection() -> nn.Sequential:
            return nn.Sequential(nn.SiLU(), operations.Linear(dim, 6 * dim, **factory))

        # Inputs; the patches are made in float32 or better, as in ComfyUI's Wan.
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        self.patch_embedding = operations.Conv3d(
            config.in_dim, dim, kernel_size=patch, stride=patch, device=device, dtype=precise
        )
        self.token_embedding = operations.Embedding(config.token_rows, dim, **factory)
        self.text_embedding = mlp(config.text_dim, nn.GELU(approximate="tanh"))  # of the prompt condition

        # A clock for each stream.
        self.time_embedding, self.time_projection = mlp(config.freq_dim, nn.SiLU()), time_projection()
        self.time_embedding_t, self.time_projection_t = mlp(config.freq_dim, nn.SiLU()), time_projection()

        self.blocks = nn.ModuleList(JointBlock(config, operations, **factory) for _ in range(config.num_layers))

        video_norm = operations.LayerNorm(dim, config.eps, elementwise_affine=False, **factory)
        self.head = Head(video_norm, dim, config.out_dim * math.prod(patch), operations, **factory)
        text_norm = operations.LayerNorm(dim, TEXT_NORM_EPS, elementwise_affine=True, bias=False, **factory)
        self.text_head = Head(text_norm, dim, config.text_out_dim, operations, **factory)

    def forward(
        self,
        video: Tensor,
        text: Tensor | None,
        time_video: Tensor,
        time_text: Tensor,
        context: Tensor,
        text_mask: Tensor | None = None,
        options: PassOptions = EVERYTHING,
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
        if text is None:
            text = torch.zeros(video.shape[0], 0, dtype=torch.long, device=video.device)
        times = {"video time": time_video, "text time": time_text}
        check_inputs(self.config, video, text, times, context, text_mask)
        cache, hooks, dtype = options.cache, options.hooks, self.computes_in(video)
        f, h, w = grid = [n // p for n, p in zip(video.shape[2:], self.config.patch_size, strict=True)]
        count = f * h * w
        text_only = cache is not None and cache.begin(video.shape[0], count, len(self.blocks))

        x = self._tokens(None if text_only else video, text, dtype)
        time_v, time_t, vectors = self._times(time_video, time_text, dtype)
        at = Pass(
            text=text.shape[1],
            times=vectors,
            rotations=self._rotations(None if text_only else grid, text.shape[1], video.device, hooks),
            context=self.text_embedding(context.to(dtype)),
            attention=hooks.attention or self.attention,
            cross_attention=hooks.cross_attention or hooks.attention or self.attention,
            key_mask=None if text_mask is None else _hiding(~text_mask.bool(), count, dtype),
            cache=cache,
            in_place=(hooks.block is None or hooks.in_place) and not torch.is_grad_enabled(),
            rotate=hooks.rotate,
            modulate=hooks.modulate,
        )
        if text.shape[1] and not text_only:
            at = self._one_way(at, options, count, dtype)
        for index, block in enumerate(self.blocks):
            if index == len(self.blocks) - 1 and text.shape[1] and hooks.drop_video and not options.want_velocity:
                at = at._replace(drop_video=True)
            run = partial(block, index)
            x = run(x, at) if hooks.block is None else hooks.block(index, run, x, at)

        video_end = x.shape[1] - text.shape[1]
        velocity = logits = None
        if options.want_velocity and not text_only:
            velocity = self._unpatchify(self.head(x[:, :video_end], time_v), grid)
        if options.want_logits is not False:
            rows = slice(None) if options.want_logits is True else options.want_logits
            logits = self.text_head(x[rows, video_end:], time_t[rows])
        return Prediction(velocity, logits)

    def computes_in(self, video: Tensor) -> torch.dtype:
        """The dtype of a pass over this ``video``."""
        return self.token_embedding.weight.dtype if self.follows_weights else video.dtype

    def video_cache(self, **settings: Any) -> VideoCache | None:
        """An empty cache for ``forward``, None from networks that cannot use one. ``settings`` as of ``VideoCache``."""
        return VideoCache(**settings)

    def embed(self, tokens: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of E for token ids, in ``dtype`` (None: as they are stored)."""
        rows: Tensor = self.token_embedding(tokens)
        return rows if dtype is None else rows.to(dtype)

    def _tokens(self, video: Tensor | None, text: Tensor, dtype: torch.dtype) -> Tensor:
        """``[B,V+T,D]``, a new tensor, which blocks may write over."""
        words = text.to(dtype) if text.is_floating_point() else self.embed(text, dtype)
        if video is None:
            return torch.cat([words], 1)
        precise = torch.promote_types(video.dtype, torch.float32)
        if self.follows_weights:
            precise = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(video.to(precise)).to(dtype)
        # The convolution leaves channels first in memory, which every operation after it would carry on.
        return torch.cat([rearrange(patches, "b d f h w -> b (f h w) d"), words], 1)

    def _times(self, video: Tensor, text: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Time embeddings ``[B,D]`` of both streams for the heads, and their time vectors ``[2,B,6,D]`` for blocks."""
        if self.config.time_rounding == "bfloat16":
            video, text = video.bfloat16(), text.bfloat16()
        time_v = self.time_embedding(time_features(video, self.config.freq_dim).to(dtype))
        time_t = self.time_embedding_t(time_features(text, self.config.freq_dim).to(dtype))
        vectors = torch.stack([self.time_projection(time_v), self.time_projection_t(time_t)])
        return time_v, time_t, vectors.view(2, len(video), 6, -1)

    def _rotations(self, grid: list[int] | None, text: int, device: torch.device, hooks: Hooks) -> Tensor:
        """Rotary embeddings of all tokens."""
        head_dim = self.config.head_dim
        angles = [text_angles(text, head_dim, device, self.config.text_inv_freq)]
        if grid is not None:
            angles = [video_angles(grid, head_dim, device, hooks.scale, hooks.shift), *angles]
        return (matrices if hooks.rotate else rotations)(join(angles, 0)).to(device)

    def _one_way(self, at: Pass, options: PassOptions, count: int, dtype: torch.dtype) -> Pass:
        """The pass with the text hidden from the video where a cache or the network's rule demands it."""
        if options.cache is not None and not options.cache.reads_text:
            return at._replace(one_way=True)
        if self.config.v2t_attention != "one_way":
            return at
        clean = options.video_clean
        if not isinstance(clean, Tensor):
            return at._replace(one_way=clean)
        mask = _hiding(clean[:, None].expand(-1, at.text), count, dtype)
        return at._replace(video_mask=mask if at.key_mask is None else torch.minimum(mask, at.key_mask))

    def _unpatchify(self, x: Tensor, grid: list[int]) -> Tensor:
        f, h, w = grid
        p, q, r = self.config.patch_size
        return rearrange(x, "b (f h w) (p q r c) -> b c (f p) (h q) (w r)", f=f, h=h, w=w, p=p, q=q, r=r)


def _hiding(where_BT: Tensor, video: int, dtype: torch.dtype) -> Tensor:
    """A mask ``[B,1,V+T]`` that hides text tokens; the video's keys come first and are all seen."""
    hidden = torch.zeros(where_BT.shape, dtype=dtype, device=where_BT.device)
    return F.pad(hidden.masked_fill(where_BT, torch.finfo(dtype).min), (video, 0))[:, None]
