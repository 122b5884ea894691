"""Our network behind the signature that ComfyUI calls, open to the patches that plain Wan accepts.

Legend: B batch, C latent channels, F H W latent frames, height, width, V video and T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.ldm.common_dit
import comfy.model_management
import comfy.patcher_extension
import comfy.quant_ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...uvg_core.config import ModelConfig, RunConfig
from ...uvg_core.errors import UniViGUError
from ...uvg_core.model import Hooks, Pass, PassOptions, UniViGU
from ...uvg_core.model.modulation import Modulation, modulate
from ...uvg_core.model.options import RunBlock
from ...uvg_core.model.rope import rotate
from ...uvg_core.model.streams import TEXT, VIDEO, join, split
from ...uvg_core.sampling.start import as_text_content


@dataclass(frozen=True)
class TextInput:
    """The text of one call of the network, a row for each of its batch: ``content`` ``[B,L]`` ids or ``[B,L,D]``
    vectors, ``time`` ``[B]`` on the network's clock, ``mask`` ``[B,L]``.

    ``chunks``: the batch's conditions, equally many rows each, and whether their logits are wanted. ``logits`` gets
    these, a tensor for each: what ComfyUI's models return is the velocity alone.
    """

    content: Tensor
    time: Tensor
    mask: Tensor | None
    options: PassOptions
    chunks: Sequence[bool] = (True,)
    logits: list[Tensor] = field(default_factory=list)

    def for_chunks(self, chunks: Sequence[bool]) -> TextInput:
        """The same text for each of these conditions."""

        def repeated(part: Tensor) -> Tensor:
            return torch.cat([part] * len(chunks))

        mask = None if self.mask is None else repeated(self.mask)
        return replace(self, content=repeated(self.content), time=repeated(self.time), mask=mask, chunks=chunks)

    @property
    def rows(self) -> int:
        """Of a condition."""
        return len(self.content) // len(self.chunks)

    @property
    def wanted(self) -> slice | bool:
        """The rows from the first to the last whose logits are wanted."""
        chunks = [n for n, wanted in enumerate(self.chunks) if wanted]
        return slice(chunks[0] * self.rows, (chunks[-1] + 1) * self.rows) if chunks else False

    def take(self, logits: Tensor) -> None:
        """Keep what is wanted of the logits of those rows."""
        first = self.chunks.index(True)
        parts = zip(logits.split(self.rows), self.chunks[first:], strict=False)
        self.logits.extend(part for part, wanted in parts if wanted)


class HostedNetwork(UniViGU):
    """Our network behind the signature that ComfyUI calls, open to the patches that plain Wan accepts.

    Of what patches see, ``img`` is the video's tokens ``[B,V,D]`` as in plain Wan; ``uvg_text`` beside it is the text
    stream's ``[B,T,D]``, for those who know about it.
    """

    def __init__(self, config: ModelConfig, *, device: Any, dtype: torch.dtype, operations: Any) -> None:
        super().__init__(config, operations=operations, attention=optimized_attention, device=device, dtype=dtype)
        self.dtype = dtype

    def forward(  # type: ignore[override]
        self,
        x: Tensor | list[Tensor],
        timestep: Tensor | tuple[Tensor, Tensor],
        context: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor | list[Tensor]:
        options = {} if transformer_options is None else transformer_options
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._forward,
            self,
            comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options),
        ).execute(x, timestep, context, options, **kwargs)

    def _forward(
        self,
        x: Tensor | list[Tensor],
        timestep: Tensor | tuple[Tensor, Tensor],
        context: Tensor | None,
        options: dict[str, Any],
        *,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        sampler_text: TextInput | None = None,
        held: tuple[bool, ...] = (),
        **_: Any,
    ) -> Tensor | list[Tensor]:
        """Where the text comes from, in this order: a run of our samplers (``sampler_text``), the second stream of a
        nested latent, the tokens of the conditioning (held clean), nowhere (plain Wan)."""
        video, *texts = [x] if isinstance(x, Tensor) else x
        time_video, time_text = timestep if isinstance(timestep, tuple) else (timestep, timestep)
        text: Tensor | None = None
        mask, asked = None, PassOptions(want_logits=bool(texts), video_clean=bool(held and held[0]))
        if sampler_text is not None:
            text, time_text = sampler_text.content.to(video.device), sampler_text.time.to(video.device)
            mask = None if sampler_text.mask is None else sampler_text.mask.to(video.device)
            asked = replace(sampler_text.options, want_logits=sampler_text.wanted)
        elif texts:
            text = texts[0].transpose(1, 2)
        elif text_tokens is not None:
            text, mask = as_text_content(self, text_tokens), text_mask
            time_text = torch.zeros_like(time_video)
        if context is None:
            context = video.new_zeros(video.shape[0], 1, self.config.text_dim)

        size = video.shape[2:]
        padded = comfy.ldm.common_dit.pad_to_patch_size(video, self.config.patch_size)
        options["grid_sizes"] = tuple(n // p for n, p in zip(padded.shape[2:], self.config.patch_size, strict=True))
        velocity, logits = super().forward(
            padded,
            text,
            time_video.flatten(),
            time_text.flatten(),
            context,
            mask,
            replace(asked, hooks=_hooks(self, padded, options)),
        )
        if sampler_text is not None and logits is not None:
            sampler_text.take(logits)
        velocity = torch.zeros_like(video) if velocity is None else velocity[:, :, : size[0], : size[1], : size[2]]
        return velocity if not texts or logits is None else [velocity, logits.transpose(1, 2)]

    def embed(self, tokens: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of E, wherever its weights lie; in float32 where nothing else is asked for, since E may be stored in
        fp8, which cannot be indexed on every device."""
        return self.token_embedding(tokens, out_dtype=dtype or torch.float32)


def weights_of(config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a network, without their values: what a loaded one shows depends on how it is stored."""
    return UniViGU(config, attention=optimized_attention, device="meta").state_dict()


def _hooks(network: HostedNetwork, latent: Tensor, options: dict[str, Any]) -> Hooks:
    """ComfyUI's patches for one forward pass, under the names that plain Wan gives them."""
    patches = options.get("patches", {})
    replaced = options.get("patches_replace", {}).get("dit", {})
    after_attention = patches.get("attn1_patch", [])
    after_block = patches.get("double_block", [])
    rope = options.get("rope_options") or {}
    options["total_blocks"] = len(network.blocks)
    options["block_type"] = "double"

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        return optimized_attention(q, k, v, heads=heads, mask=mask, transformer_options=options)

    def attend_patched(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        out = attend(q, k, v, heads, mask)
        for patch in after_attention:
            seen = {"q": q.unflatten(-1, (heads, -1)), "k": k.unflatten(-1, (heads, -1))}
            out = patch({"x": out, **seen, "transformer_options": options})
        return out

    def around(index: int, run: RunBlock, x: Tensor, at: Pass) -> Tensor:
        options["block_index"] = index
        replacement = replaced.get(("double_block", index))
        out = run(x, at) if replacement is None else _replaced(replacement, run, x, at, options)
        for patch in after_block:
            video, text = _apart(out, at)
            seen = {
                "img": video,
                "uvg_text": text,
                "x": latent,
                "vec": at.times[VIDEO],
                "block_index": index,
                "img_offset": 0,
                "transformer_options": options,
            }
            changed = patch(seen)
            out = torch.cat([changed["img"], changed.get("uvg_text", text)], 1)
        return out

    return Hooks(
        attention=attend_patched if after_attention else attend,
        cross_attention=attend,
        block=around,
        drop_video=not (replaced or after_attention or after_block),
        in_place=not (replaced or after_block),  # else somebody looks at what goes into a block
        rotate=None if comfy.model_management.in_training else _rotate,
        modulate=_fused_modulate if latent.is_cuda and not comfy.model_management.in_training else None,
        scale=tuple(rope.get(f"scale_{axis}", 1.0) for axis in "tyx"),
        shift=tuple(rope.get(f"shift_{axis}", 0.0) for axis in "tyx"),
    )


def _fused_modulate(norm: torch.nn.LayerNorm, x: Tensor, modulation: Modulation) -> Tensor:
    """``modulate`` by comfy-kitchen, one kernel in place of three; elsewhere than on CUDA, and where it has none, the
    plain way, which core's Wan takes too."""
    fused = getattr(comfy.quant_ops.ck, "adaln", None)
    if fused is None or not x.numel():
        return modulate(norm, x, modulation)
    out: Tensor = fused(x, modulation.scale, modulation.shift, norm.eps)
    return out


def _rotate(x: Tensor, rotations: Tensor, text: int, heads: int) -> Tensor:
    """``rotate`` by core's kernels (one pass on CUDA), under the names that plain Wan and the half-split models use:
    written over ``x``, or where there is no kernel for that, not. ``rotations`` are matrices."""
    kitchen, names = comfy.quant_ops.ck, ("apply_rope1", "apply_rope_split_half1")
    if not all(hasattr(kitchen, name) for name in names):  # an older comfy-kitchen
        return rotate(x, torch.complex(rotations[..., 0, 0], rotations[..., 1, 0]), text, heads)
    in_place = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    in_place = in_place and all(hasattr(kitchen, f"{name}_") for name in names)
    parts, turned = split(x, text), []
    matrices = rotations[None, :, None].split([part.shape[1] for _, part in parts], 1)
    for (stream, part), known in zip(parts, matrices, strict=True):
        turn = getattr(kitchen, names[stream] + "_" * in_place)
        turned.append(turn(part.unflatten(-1, (heads, -1)), known))
    return x if in_place else join([part.flatten(-2) for part in turned])


def _apart(x: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
    """The tokens of the video and of the text, for patches."""
    video = x.shape[1] - at.text
    return x[:, :video].contiguous(), x[:, video:].contiguous()


def _replaced(patch: Any, run: RunBlock, x: Tensor, at: Pass, options: dict[str, Any]) -> Tensor:
    """One block through a ``patches_replace`` function, which may call the block or not."""
    video, text = _apart(x, at)

    def original(args: dict[str, Any]) -> dict[str, Any]:
        given = torch.cat([args["img"], args.get("uvg_text", text)], 1)
        vectors = torch.stack([args.get("vec", at.times[VIDEO]), at.times[TEXT]])
        out = run(given, at._replace(times=vectors, context=args.get("txt", at.context)))
        return dict(zip(("img", "uvg_text"), _apart(out, at), strict=True))

    args = {
        "img": video,
        "uvg_text": text,
        "txt": at.context,
        "vec": at.times[VIDEO],
        "pe": at.rotations[: video.shape[1]],
        "transformer_options": options,
    }
    out = patch(args, {"original_block": original})
    return torch.cat([out["img"], out.get("uvg_text", text)], 1)


def run_facts(carrier: Any) -> RunConfig:
    """The recipe that a MODEL or CLIP carries, from our loader or core's; the released model's if the file has none."""
    if hasattr(carrier, "tokenizer"):
        found = getattr(carrier.tokenizer, "run_facts", None)
    elif hasattr(carrier.model, "run_facts"):
        # As Check Uni-ViGU or a distilled LoRA has patched this MODEL, not another that was loaded last.
        found = carrier.get_model_object("run_facts")
    else:
        found = None
    return found or RunConfig()


def config_of(model: Any) -> ModelConfig:
    """How the network inside a MODEL is run, by its file or by what Check Uni-ViGU has found."""
    network_of(model)
    found: ModelConfig = model.get_model_object("diffusion_model.config")
    return found


def latent_format_of(model: Any) -> Any:
    """The latent space of a MODEL, by its file or by what Check Uni-ViGU has found, whether or not it is loaded."""
    return model.get_model_object("latent_format")


def network_of(model: Any) -> HostedNetwork:
    """The network inside a MODEL. Raises UniViGUError when it is another one."""
    network = model.model.diffusion_model
    if not isinstance(network, HostedNetwork):
        raise UniViGUError(
            f"found a MODEL of another kind ({type(model.model).__name__}), expected a Uni-ViGU: only it has a text "
            "stream. Load the checkpoint with Load Uni-ViGU"
        )
    return network
