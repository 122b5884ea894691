"""The bridge to ComfyUI: with ``bridge_training.py``, the only file that knows its internals.

Below it: our network as one of ComfyUI's models (registered, so that core's own loaders find it), the sampling of both
streams inside ComfyUI's guider, files and folders, and what is shown while a node works. Nodes read their widgets and
call one function from here.

Legend: B batch, C latent channels, F H W latent frames, height, width, L text tokens, D width of the network.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.ldm.common_dit
import comfy.ldm.wan.vae
import comfy.lora
import comfy.lora_convert
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_sampling
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.quant_ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taehv
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.ldm.modules.attention import optimized_attention
from server import PromptServer
from torch import Tensor

from ..uvg_core.checkpoint.convert import packed
from ..uvg_core.checkpoint.detect import UNI_VIGU_LAYOUTS, find_network, require_layout
from ..uvg_core.checkpoint.fit import compare, require_fit
from ..uvg_core.checkpoint.keys import ENCODER_PREFIX, TOKENIZER_KEY, VAE_PREFIX, strip_wrappers, to_native
from ..uvg_core.checkpoint.quant import FP8_DTYPES, METADATA_KEY, dequantise, is_companion, quantisation_metadata
from ..uvg_core.checkpoint.read import Stored, open_weights
from ..uvg_core.checkpoint.sizes import whole_config
from ..uvg_core.checkpoint.write import ALL_IN_ONE_PREFIX, Pending, write_safetensors
from ..uvg_core.codec.text import Tokenizer, encoder_config
from ..uvg_core.config import CheckpointConfig, ModelConfig, RunConfig
from ..uvg_core.errors import UniViGUError
from ..uvg_core.flow.embedding import nearest_tokens
from ..uvg_core.flow.time import sigma_from_model_time
from ..uvg_core.model import Hooks, Prediction, UniViGU, VideoCache
from ..uvg_core.model.block import Call, Streams
from ..uvg_core.model.modulation import Modulation, modulate
from ..uvg_core.model.rope import rotate
from ..uvg_core.model.sizes import pass_bytes, video_tokens
from ..uvg_core.sampling.modes import as_text_content

log = logging.getLogger(__name__)

PACK = Path(__file__).resolve().parent.parent
EMBEDDED = "uvg_tiny.safetensors"
FOLDER = "uni_vigu"
TEXT_STREAM = "uni_vigu_text"  # where transformer_options carry the text of a run
TEXT_TOKENS, TEXT_MASK = "uni_vigu_tokens", "uni_vigu_mask"  # where CONDITIONING carries the held-clean text
TEXT_WEIGHT = "text_head.head.weight"
FROM_CHECKPOINT = "from the checkpoint"


# ------------------------------------------------------------------------------------------- the network as a MODEL


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
        text_stream: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tensor | list[Tensor]:
        """Where the text comes from, in this order: a run of our samplers (``text_stream``), the second stream of a
        nested latent, the tokens of the conditioning (held clean), nowhere (plain Wan)."""
        nested = not isinstance(x, Tensor)
        video = x[0] if nested else x
        time_video, time_text = timestep if isinstance(timestep, tuple) else (timestep, timestep)
        text: Tensor | None = None
        want_velocity, want_logits, mask, cache = True, nested, None, None
        if text_stream is not None:
            cache = text_stream.get("cache")
            text, mask, time_text = text_stream["content"], text_stream["mask"], text_stream["time"]
            want_velocity, want_logits = text_stream["want_velocity"], text_stream["logits_rows"]
        elif nested:
            text = x[1].transpose(1, 2)
        elif text_tokens is not None:
            text, mask, time_text = self.clean_text(text_tokens), text_mask, torch.zeros_like(time_video)
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
            want_velocity=want_velocity,
            want_logits=want_logits,
            cache=cache,
            hooks=_hooks(self, padded, options),
        )
        if text_stream is not None:
            text_stream["logits"] = logits
        velocity = torch.zeros_like(video) if velocity is None else velocity[:, :, : size[0], : size[1], : size[2]]
        return [velocity, logits.transpose(1, 2)] if nested else velocity

    def embed(self, tokens: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of E, wherever its weights lie; in float32 where nothing else is asked for, since E may be stored in
        fp8, which cannot be indexed on every device."""
        return self.token_embedding(tokens, out_dtype=dtype or torch.float32)

    def clean_text(self, tokens: Tensor) -> Tensor:
        """What the network takes for clean tokens ``[B,L]``: ids, or rows of E with the embedding flow."""
        return as_text_content(self, tokens)


def weights_of(config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a network, without their values: what a loaded one shows depends on how it is stored."""
    return UniViGU(config, attention=optimized_attention, device="meta").state_dict()


def _hooks(network: HostedNetwork, x: Tensor, options: dict[str, Any]) -> Hooks:
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

    def around(index: int, run: Callable[[Call], Streams], call: Call) -> Streams:
        options["block_index"] = index
        replacement = replaced.get(("double_block", index))
        out = run(call) if replacement is None else _replaced(replacement, run, call, options)
        for patch in after_block:
            seen = {
                "img": out.video,
                "uvg_text": out.text,
                "x": x,
                "vec": call.e.video,
                "block_index": index,
                "img_offset": 0,
                "transformer_options": options,
            }
            changed = patch(seen)
            out = Streams(changed["img"], changed.get("uvg_text", out.text))
        return out

    return Hooks(
        attention=attend_patched if after_attention else attend,
        cross_attention=attend,
        block=around,
        text_alone=not (replaced or after_attention or after_block),
        rotate=rotate if comfy.model_management.in_training else _rotate,
        modulate=_fused_modulate if x.is_cuda and not comfy.model_management.in_training else modulate,
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


def _rotate(x: Tensor, rotations: Tensor, heads: int, pairs: str) -> Tensor:
    """``rotate`` by core's kernels (one pass on CUDA), under the names that plain Wan and the half-split models use."""
    turn = getattr(comfy.quant_ops.ck, "apply_rope1" if pairs == "interleaved" else "apply_rope_split_half1", None)
    if turn is None:  # an older comfy-kitchen
        return rotate(x, rotations, heads, pairs)
    turned: Tensor = turn(x.unflatten(-1, (heads, -1)), rotations[None, :, None])
    return turned.flatten(-2)


def _replaced(patch: Any, run: Callable[[Call], Streams], call: Call, options: dict[str, Any]) -> Streams:
    """One block through a ``patches_replace`` function, which may call the block or not."""

    def original(args: dict[str, Any]) -> dict[str, Any]:
        x = Streams(args["img"], args.get("uvg_text", call.x.text))
        e = Streams(args.get("vec", call.e.video), call.e.text)
        out = run(call._replace(x=x, e=e, context=args.get("txt", call.context)))
        return {"img": out.video, "uvg_text": out.text}

    args = {
        "img": call.x.video,
        "uvg_text": call.x.text,
        "txt": call.context,
        "vec": call.e.video,
        "pe": call.rotations.video,
        "transformer_options": options,
    }
    out = patch(args, {"original_block": original})
    return Streams(out["img"], out.get("uvg_text", call.x.text))


class RawWan(comfy.latent_formats.Wan21):
    """Latents as the VAE gives them, for checkpoints trained without Wan's per-channel mean and std."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = self.latents_mean.flatten(), self.latents_std.flatten()
        # Previews must look the same: what is not divided here is divided in the preview's factors.
        factors = torch.tensor(self.latent_rgb_factors)
        self.latent_rgb_factors_bias = (torch.tensor(self.latent_rgb_factors_bias) - (mean / std) @ factors).tolist()
        self.latent_rgb_factors = (factors / std[:, None]).tolist()

    def process_in(self, latent: Tensor) -> Tensor:
        return latent

    def process_out(self, latent: Tensor) -> Tensor:
        return latent


class UniViGUModel(comfy.model_base.WAN21):
    """Plain Wan to whoever asks, with a text stream beside the video.

    The text is held clean (tokens of the conditioning), noisy in a run of our samplers, or a second latent stream
    (embedding flow): ``NestedTensor((video [B,C,F,H,W], text [B,D,L]))``, which samplers see packed as ``[B,1,N]``.
    """

    def __init__(self, model_config: Any, config: ModelConfig, run: RunConfig, device: Any = None) -> None:
        model_config.latent_format = RawWan() if config.latent_space == "raw" else comfy.latent_formats.Wan21()

        def build(*, dtype: torch.dtype, device: Any, operations: Any, **_: Any) -> HostedNetwork:
            return HostedNetwork(config, device=device, dtype=dtype, operations=operations)

        # Wan's own constructor would build Wan's network.
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=build
        )
        self.image_to_video = False
        self.run_facts = run
        # Of the run under way, for the estimate of its memory
        self.text_length, self.wants_logits = run.text_length, False

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", **kwargs: Any) -> Any:
        """Strict where core only logs: a network with holes in it makes noise, not an error."""
        # Not the network's own list: core makes some weights only as they are loaded (dynamic VRAM, comfy_quant).
        wanted = weights_of(self.config).keys()
        missing = sorted(name for name in wanted if unet_prefix + name not in sd)
        if missing:
            raise UniViGUError(
                f"the checkpoint lacks {len(missing)} of {len(wanted)} tensors of the network, first {missing[0]}; "
                "expected all of them. The file is incomplete: download or convert it again"
            )
        return super().load_model_weights(sd, unet_prefix, **kwargs)

    # Streams

    @property
    def config(self) -> ModelConfig:
        return self.diffusion_model.config

    def _streams(self, latent: Tensor) -> list[Tensor] | None:
        """The streams of a packed latent; None for a plain one."""
        shapes = self.latent_shapes
        if latent.ndim != 3 or shapes is None or len(shapes) < 2:
            return None
        return comfy.utils.unpack_latents(latent, shapes)

    def _on_video(self, latent: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Apply ``change`` to the video of a plain, nested or packed latent."""
        if getattr(latent, "is_nested", False):
            video, *rest = latent.unbind()
            return comfy.nested_tensor.NestedTensor((change(video), *rest))
        streams = self._streams(latent)
        if streams is None:
            return change(latent)
        return comfy.utils.pack_latents([change(streams[0]), *streams[1:]])[0]

    def process_latent_in(self, latent: Any) -> Any:
        if not getattr(latent, "is_nested", False) and self._streams(latent) is None:
            require_video_latent(latent, self.config)
        return self._on_video(latent, self.latent_format.process_in)

    def process_latent_out(self, latent: Any) -> Any:
        return self._on_video(latent, self.latent_format.process_out)

    def concat_cond(self, **kwargs: Any) -> None:
        return None

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        out = super().extra_conds(**kwargs)
        states = kwargs.get("cross_attn")
        if states is not None and states.shape[-1] != self.config.text_dim:
            raise UniViGUError(
                f"the prompt comes from a text encoder of width {states.shape[-1]}; this model expects width "
                f"{self.config.text_dim}. Take the CLIP of Load Uni-ViGU with the text encoder that the checkpoint "
                "was trained with (umT5-XXL for the released model)"
            )
        tokens, mask = kwargs.get(TEXT_TOKENS), kwargs.get(TEXT_MASK)
        if tokens is not None:
            out["text_tokens"] = comfy.conds.CONDRegular(tokens)
            if mask is not None:
                out["text_mask"] = comfy.conds.CONDRegular(mask.int())
        shapes = kwargs.get("latent_shapes")
        if shapes is not None and len(shapes) > 1:
            if self.config.text_flow != "embedding":
                raise UniViGUError(
                    "found a latent with a text stream, and a checkpoint with the discrete text flow; expected the "
                    "video alone: use Joint Sampler or Video-to-Text Denoise, or an embedding-flow checkpoint"
                )
            if shapes[1][1] != self.config.dim:
                raise UniViGUError(
                    f"the latent's text stream is {shapes[1][1]} wide; this model expects {self.config.dim}: it was "
                    "made for another model. Make it with Empty Uni-ViGU Latent and this MODEL"
                )
            out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
            out["held"] = comfy.conds.CONDConstant(self._held(kwargs.get("denoise_mask"), shapes))
        else:
            require_video_latent(kwargs.get("noise"), self.config)
        return out

    @staticmethod
    def _held(mask: Tensor | None, shapes: Sequence[Any]) -> tuple[bool, ...]:
        """Which streams a mask holds clean as a whole."""
        if mask is None:
            return (False,) * len(shapes)
        return tuple(not bool(part.any()) for part in comfy.utils.unpack_latents(mask, shapes))

    def process_timestep(self, timestep: Tensor, **kwargs: Any) -> Any:
        """Each stream's own clock: one that is held clean stands at 0."""
        held = kwargs.get("held")
        if held is None:
            return timestep
        return tuple(torch.zeros_like(timestep) if is_held else timestep for is_held in held)

    def scale_latent_inpaint(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, denoise_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """What stands where the mask is 0: the clean latent for a stream held as a whole, else noised as usual."""
        noised = super().scale_latent_inpaint(sigma=sigma, noise=noise, latent_image=latent_image, **kwargs)
        parts = self._streams(noised)
        if parts is None or denoise_mask is None:
            return noised
        shapes = self.latent_shapes
        held = self._held(denoise_mask.expand(noised.shape[0], -1, -1), shapes)
        clean = comfy.utils.unpack_latents(latent_image.expand_as(noised), shapes)
        return comfy.utils.pack_latents([c if h else n for c, n, h in zip(clean, parts, held, strict=True)])[0]

    def memory_required(self, input_shape: Any, cond_shapes: Mapping[str, Any] | None = None) -> float:
        """What a pass needs beside the weights (``uvg_core/model/sizes.py``).

        A packed latent counts channels as pixels: it is estimated as the video that it holds, or, where its streams
        are not known yet, as if all of it were video."""
        shapes, config = self.latent_shapes, self.config
        if len(input_shape) == 3 and shapes is not None and len(shapes) > 1:
            input_shape = [input_shape[0], *shapes[0][1:]]
        if len(input_shape) == 3:
            video = -(-math.prod(input_shape[1:]) // (config.in_dim * math.prod(config.patch_size)))
        else:
            video = video_tokens(input_shape[2:], config)
        number = comfy.model_management.dtype_size(self.get_dtype_inference())
        needed = pass_bytes(
            config,
            rows=input_shape[0],
            video=video,
            text=self.text_length,
            itemsize=number,
            logits=self.wants_logits,
        )
        if comfy.model_management.xformers_enabled() or comfy.model_management.pytorch_attention_flash_attention():
            return needed
        # Attention that makes (pieces of) the whole matrix: core's own estimate knows about it.
        return max(needed, super().memory_required(input_shape, {} if cond_shapes is None else cond_shapes))

    # Runs of our samplers

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hand the text of a run to the network, and its logits back.

        It happens here, in front of the network, so that a compiled network sees plain arguments: options are not
        among what torch.compile guards."""
        options = {} if transformer_options is None else transformer_options
        run: TextRun | None = options.get(TEXT_STREAM)
        if run is None:
            return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)
        stream = run.for_batch(x, options.get("cond_or_uncond") or [0])
        kwargs = {name: value for name, value in kwargs.items() if name not in ("text_tokens", "text_mask")}
        out = super()._apply_model(x, t, c_concat, c_crossattn, control, options, text_stream=stream, **kwargs)
        run.take(stream)
        return out


class UniViGUConfig(comfy.supported_models.WAN21_T2V):
    """How core's loaders recognise our files: Wan2.1 text-to-video with a text head."""

    required_keys = {"{}" + TEXT_WEIGHT: 1}  # noqa: RUF012 (core's own form)
    sampling_settings = {"shift": 3.0}  # noqa: RUF012

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> UniViGUModel:
        return UniViGUModel(self, self._network_config(state_dict, prefix), self._run(), device=device)

    def _run(self) -> RunConfig:
        """The recipe, where the file's metadata carries one."""
        stated = self.unet_config.get("run") or {}
        return RunConfig(**{f.name: stated[f.name] for f in fields(RunConfig) if f.name in stated})

    def _network_config(self, state_dict: dict[str, Tensor], prefix: str) -> ModelConfig:
        """What metadata says (core merges it into what it detects), and the tensors' shapes where it says nothing."""
        stated = {f.name: self.unet_config[f.name] for f in fields(ModelConfig) if f.name in self.unet_config}

        def rows(name: str, axis: int = 0) -> int:
            return state_dict[prefix + name].shape[axis]

        stated["freq_dim"] = rows("time_embedding.0.weight", 1)
        stated["text_dim"] = rows("text_embedding.0.weight", 1)
        stated["num_heads"] = stated.get("num_heads") or max(1, stated["dim"] // 128)
        embedded = rows(TEXT_WEIGHT) == rows(TEXT_WEIGHT, 1) != rows("token_embedding.weight")
        stated.setdefault("text_flow", "embedding" if embedded else "discrete")
        masked = stated.get("source") == "mask" and stated["text_flow"] == "discrete"
        stated["vocab_size"] = rows("token_embedding.weight") - masked
        return ModelConfig(**stated)

    def clip_target(self, state_dict: dict[str, Tensor] | None = None) -> Any:
        """The text encoder of an all-in-one file, sized by its weights."""
        weights = _inside(state_dict or {}, ENCODER_PREFIX)
        detected = comfy.text_encoders.sd3_clip.t5_xxl_detect(state_dict or {}, ENCODER_PREFIX)
        return encoder_target(encoder_config(weights) if weights else {}, detected, self._run())


def _inside(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One part of an all-in-one file, under its own names; empty where the file does not have it."""
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def register() -> None:
    """Make our files known to core's loaders and our folders to its lists. Twice does no harm."""
    models = comfy.supported_models.models
    models[:] = [known for known in models if known.__name__ != UniViGUConfig.__name__]  # a reloaded pack
    models.insert(0, UniViGUConfig)
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
    folder_paths.add_model_folder_path(FOLDER, str(PACK / "models"))
    # A folder that is new to ComfyUI has no file types yet, which would list everything in it.
    folder_paths.folder_names_and_paths[FOLDER] = (
        folder_paths.folder_names_and_paths[FOLDER][0],
        folder_paths.supported_pt_extensions,
    )


# ----------------------------------------------------------------------------------------------------------- loading

LISTS = (FOLDER, "diffusion_models", "checkpoints")
WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "fp32": {"dtype": torch.float32},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def checkpoint_names() -> list[str]:
    """What the loader offers: the embedded model first, then ComfyUI's model folders, each name once."""
    names = [name for kind in LISTS for name in folder_paths.get_filename_list(kind)]
    return sorted(dict.fromkeys(names), key=lambda name: name != EMBEDDED)


def checkpoint_path(name: str) -> str:
    """Raises UniViGUError for a name that lies in no folder."""
    found = next((path for kind in LISTS if (path := folder_paths.get_full_path(kind, name)) is not None), None)
    if found is None:
        raise UniViGUError(
            f"{name}: found in none of ComfyUI's folders {', '.join(LISTS)}; put the file into models/{FOLDER} or "
            "models/diffusion_models, press R, and choose it again"
        )
    return found


def file_names(kind: str) -> list[str]:
    """Names in one of ComfyUI's model folders."""
    return folder_paths.get_filename_list(kind)


def file_path(kind: str, name: str) -> str:
    """Raises UniViGUError for a name that is not there."""
    found = folder_paths.get_full_path(kind, name)
    if found is None:
        raise UniViGUError(f"{name}: not found in models/{kind}; press R and choose a file that is there")
    return found


def load_network(path: str, weight_dtype: str, latent_space: str | None, disable_dynamic: bool = False) -> Any:
    """A Uni-ViGU checkpoint of any layout as a MODEL; also what ComfyUI calls to load it anew on another device.

    Raises UniViGUError naming the file when it is not one.
    """
    weights = open_weights(path)
    network = find_network(weights)
    require_layout(weights, network, UNI_VIGU_LAYOUTS)
    config = whole_config(weights, network, latent_space=latent_space)
    require_fit(weights, network, compare(weights, network, config.model))
    metadata = {**weights.metadata, "config": config.to_json()}
    if Path(path).suffix in (".safetensors", ".sft"):
        stored = comfy.utils.load_torch_file(path)  # core's reader: memory-mapped as its offload wants it
        read = stored.__getitem__
    else:
        read = weights.read
    if network.layout == "native":
        inside = [name for name in weights.tensors if name not in network.others]  # scales of fp8 too
        names = {strip_wrappers(name).removeprefix(network.prefix): name for name in inside}
    else:
        names = network.names
    if METADATA_KEY in metadata:
        metadata[METADATA_KEY] = _without_prefix(metadata[METADATA_KEY], network.prefix)
    tensors = {name: read(stored_name) for name, stored_name in names.items()}
    options = WEIGHT_DTYPES[weight_dtype]
    model = comfy.sd.load_diffusion_model_state_dict(
        tensors, model_options=options, metadata=metadata, disable_dynamic=disable_dynamic
    )
    model.cached_patcher_init = (load_network, (path, weight_dtype, latent_space))
    return model


def _without_prefix(quantisation: str, prefix: str) -> str:
    """Core's list of quantised layers, for a network that was cut out of an all-in-one file."""
    data = json.loads(quantisation)
    layers = {k.removeprefix(prefix): v for k, v in data["layers"].items() if k.startswith(prefix)}
    return json.dumps({**data, "layers": layers})


def encoder_target(
    sizes: Mapping[str, int], detected: Mapping[str, Any], run: RunConfig, release_states: bool = False
) -> Any:
    """What core's CLIP needs to build a umT5 of any size, which pads prompts to the rows that the model was trained
    with; see ``TextEncoder`` in uvg_core for the release's states."""
    base = comfy.text_encoders.wan.te(**detected)
    known = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    config: dict[str, Any] = {name: sizes[name] for name in known if name in sizes}
    if release_states:
        config["model_type"] = "t5"  # the first layer's position bias everywhere

    class Encoder(base):  # type: ignore[misc, valid-type]
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:
            super().__init__(device, dtype, {**model_options, "umt5xxl_model_config": config})
            if release_states:
                self.umt5xxl.zero_out_masked = False

    class PromptTokenizer(comfy.text_encoders.wan.WanT5Tokenizer):  # type: ignore[misc]
        run_facts = run

        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:
            super().__init__(embedding_directory, {**tokenizer_data, "umt5xxl_min_length": run.context_length})

    return comfy.supported_models_base.ClipTarget(PromptTokenizer, Encoder)


def load_encoder(path: str, release_states: bool, text_dim: int, run: RunConfig) -> Any:
    """The umT5 of a text encoder file, or of an all-in-one checkpoint, as a CLIP.

    Raises UniViGUError naming the file when it holds no umT5, one of another width, or no tokenizer.
    """
    clip = _build_clip(path, release_states, text_dim, run)
    clip.patcher.cached_patcher_init = (_clip_patcher, (path, release_states, text_dim, run))
    return clip


def _clip_patcher(path: str, release_states: bool, text_dim: int, run: RunConfig, disable_dynamic: bool = False) -> Any:
    """What ComfyUI calls to load the text encoder anew on another device."""
    return _build_clip(path, release_states, text_dim, run, disable_dynamic).patcher


def _build_clip(path: str, release_states: bool, text_dim: int, run: RunConfig, disable_dynamic: bool = False) -> Any:
    stored, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    inside = _inside(stored, ENCODER_PREFIX)
    tokenizer = stored.get(TOKENIZER_KEY if inside else "spiece_model")
    weights, _ = (inside, None) if inside else comfy.utils.convert_old_quants(stored, metadata=metadata)
    try:
        sizes = encoder_config(weights)
    except UniViGUError as error:
        raise UniViGUError(
            f"{path}: {error}. Choose a umT5 text encoder in ComfyUI's layout, such as umt5_xxl_fp8_e4m3fn_scaled or "
            "umt5_xxl_fp16"
        ) from None
    if (
        sizes["num_layers"] > 1
        and "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" not in weights
    ):
        raise UniViGUError(
            f"{path}: found a plain T5, expected a umT5 (position biases in every layer); choose a file such as "
            "umt5_xxl_fp8_e4m3fn_scaled"
        )
    if sizes["d_model"] != text_dim:
        raise UniViGUError(
            f"{path}: this text encoder is {sizes['d_model']} wide; the checkpoint expects {text_dim}. Choose the text "
            "encoder that belongs to the checkpoint: umT5-XXL (4096) for the released model, 'from the checkpoint' for "
            "the embedded one"
        )
    if tokenizer is None:
        raise UniViGUError(
            f"{path}: the text encoder has no tokenizer in it (tensor spiece_model); choose a umT5 file made for "
            "ComfyUI, such as umt5_xxl_fp8_e4m3fn_scaled"
        )
    return comfy.sd.CLIP(
        encoder_target(sizes, comfy.text_encoders.sd3_clip.t5_xxl_detect(weights), run, release_states),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"spiece_model": tokenizer},
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        disable_dynamic=disable_dynamic,
    )


def load_vae(path: str) -> Any:
    """The Wan VAE of a VAE file, or of an all-in-one checkpoint.

    Raises UniViGUError naming the file when it holds none.
    """
    vae = _build_vae(path)
    if getattr(vae, "patcher", None) is not None:
        vae.patcher.cached_patcher_init = (_vae_patcher, (path,))
    return vae


def _vae_patcher(path: str, disable_dynamic: bool = False) -> Any:
    """What ComfyUI calls to load the VAE anew on another device."""
    return _build_vae(path).patcher


def _build_vae(path: str) -> Any:
    stored, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    inside = _inside(stored, VAE_PREFIX)
    vae = comfy.sd.VAE(sd=inside or stored, metadata=metadata)
    if not is_wan_vae(vae):
        raise UniViGUError(
            f"{path}: not a Wan 2.1 VAE (16 latent channels, video); choose a file such as wan_2.1_vae.safetensors"
        )
    return vae


WAN_VAE_WIDTH = 96


def fit_preview(model: Any, vae: Any) -> None:
    """Give MODEL preview colours of its own where its VAE is not Wan's, whose colours core knows.

    Least squares from latents to the colours of pictures that are made of four plain quarters.
    """
    head = getattr(getattr(vae.first_stage_model, "decoder", None), "head", None)
    if head is None or head[0].gamma.shape[0] == WAN_VAE_WIDTH:
        return
    colours = torch.rand(16, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    latents, targets = [], []
    for quarters in colours:
        latent = vae.encode(quarters.repeat_interleave(32, 0).repeat_interleave(32, 1)[None])
        latents.append(model.model.process_latent_in(latent)[0, :, 0].flatten(1).T)
        targets.append(quarters.repeat_interleave(4, 0).repeat_interleave(4, 1).flatten(0, 1) * 2 - 1)
    rows = torch.cat(latents).cpu().float()
    fitted = torch.linalg.lstsq(torch.cat([rows, torch.ones(len(rows), 1)], 1), torch.cat(targets)).solution
    model.model.latent_format.latent_rgb_factors = fitted[:-1].tolist()
    model.model.latent_format.latent_rgb_factors_bias = fitted[-1].tolist()


def parts_of(path: str) -> set[str]:
    """Which of ``text encoder`` and ``VAE`` a checkpoint has in it. Raises UniViGUError when it is no Uni-ViGU."""
    weights = open_weights(path)
    require_layout(weights, find_network(weights), UNI_VIGU_LAYOUTS)
    prefixes = {"text encoder": ENCODER_PREFIX, "VAE": VAE_PREFIX}
    return {part for part, prefix in prefixes.items() if any(name.startswith(prefix) for name in weights.tensors)}


def run_facts(carrier: Any) -> RunConfig:
    """The recipe that a MODEL or CLIP carries, from our loader or core's; the released model's if the file has none."""
    inner = carrier.tokenizer if hasattr(carrier, "tokenizer") else carrier.model
    return getattr(inner, "run_facts", None) or RunConfig()


def network_of(model: Any) -> HostedNetwork:
    """The network inside a MODEL. Raises UniViGUError when it is another one."""
    network = model.model.diffusion_model
    if not isinstance(network, HostedNetwork):
        raise UniViGUError(
            f"found a MODEL of another kind ({type(model.model).__name__}), expected a Uni-ViGU: only it has a text "
            "stream. Load the checkpoint with Load Uni-ViGU"
        )
    return network


# -------------------------------------------------------------------------------------------------------------- LoRA


@dataclass(frozen=True)
class LoraMatch:
    """What became of a LoRA file: layers it trained, and how many of them the video half and the text half took."""

    layers: int
    video: int
    text: int
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        halves = f"{self.video} of the video half, {self.text} of the text half"
        line = f"matched {self.video + self.text} of {self.layers} layers: {halves}"
        if not self.unmatched:
            return line
        more = f" and {len(self.unmatched) - 3} more" if len(self.unmatched) > 3 else ""
        return f"{line}; not found in this model: {', '.join(self.unmatched[:3])}{more}"


LORA_ENDINGS = (
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora_A.default.weight",
    ".lora_B.default.weight", ".lora.down.weight", ".lora.up.weight", ".alpha", ".dora_scale", ".diff", ".diff_b",
    ".lokr_w1", ".lokr_w2", ".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b",
)  # fmt: skip


# Of these the last axis is the width of what goes in.
LORA_INPUTS = (".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight", ".lora.down.weight", ".diff")


def apply_lora(model: Any, path: str, video: float, text: float) -> tuple[Any, LoraMatch]:
    """A clone of MODEL with a LoRA on it: strength ``video`` on what plain Wan has, ``text`` on the text half.

    Reads Wan LoRAs in original, ComfyUI's, musubi's and diffusers' names, and our own. Raises UniViGUError for a file
    that is no LoRA, or was made for another width.
    """
    network = network_of(model)
    stored = comfy.utils.load_torch_file(path, safe_load=True)
    weights = comfy.lora_convert.convert_lora({_lora_name(name): tensor for name, tensor in stored.items()})
    layers = {name[: -len(end)] for name in weights for end in LORA_ENDINGS if name.endswith(end)}
    if not layers:
        raise UniViGUError(f"{path}: found no LoRA weights in it; expected pairs such as lora_A and lora_B")
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(weights, places, log_missing=False)
    taken = sorted(name for name in layers if name in places)
    sizes = {f"diffusion_model.{name}": tuple(tensor.shape) for name, tensor in weights_of(network.config).items()}
    at = {name: places[name] if isinstance(places[name], str) else places[name][0] for name in taken}
    for name, place in at.items():
        inputs = next((weights[name + end].shape[-1] for end in LORA_INPUTS if name + end in weights), None)
        if inputs is not None and len(sizes[place]) == 2 and inputs != sizes[place][1]:
            raise UniViGUError(
                f"{path}: this LoRA is for width {inputs} ({name}), this model's is {sizes[place][1]}: it was made for "
                "another size of Wan (1536 is the 1.3B, 5120 the 14B). Choose a LoRA for Wan2.1 1.3B"
            )
    halves: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for place, patch in patches.items():
        halves[is_text_weight(place)][place] = patch
    patched = model.clone()
    patched.add_patches(halves[False], video)
    patched.add_patches(halves[True], text)
    text_layers = sum(is_text_weight(place) for place in at.values())
    match = LoraMatch(len(layers), len(taken) - text_layers, text_layers, tuple(sorted(layers - set(taken))))
    if not patches:
        raise UniViGUError(f"{path}: {match}. It was made for another model; expected a LoRA for Wan2.1 or Uni-ViGU")
    return patched, match


def is_text_weight(name: str) -> bool:
    """Whether a weight belongs to the half that plain Wan does not have."""
    return any(part in name for part in ("ffn_t.", "_embedding_t.", "_projection_t.", "token_embedding", "text_head."))


def _lora_name(name: str) -> str:
    """Names of diffusers' Wan (``transformer.blocks.0.attn1.to_q.lora_A.weight``) in those of ComfyUI."""
    end = next((end for end in LORA_ENDINGS if name.endswith(end)), None)
    if end is None or (".attn" not in name and ".ffn.net" not in name):
        return name
    bare = name[: -len(end)].removeprefix("transformer.").removeprefix("diffusion_model.")
    native = to_native(f"{bare}.weight", "diffusers")
    return name if native is None else f"diffusion_model.{native.removesuffix('.weight')}{end}"


# ------------------------------------------------------------------------------------------------------------ saving


def save_checkpoint(
    path: Path,
    model: Any,
    clip: Any | None,
    vae: Any | None,
    dtype: str | None,
    report: Callable[[int, int], Any],
    learnt: Mapping[str, Tensor] | None = None,
) -> None:
    """Write MODEL, with whatever LoRA is on it, and the parts that are given, as one file of ours.

    ``dtype`` as for ``convert``; None keeps what is loaded. Text encoder and VAE stay as they are. ``learnt``: weights
    by name that take the place of MODEL's own.
    """
    network, run = network_of(model), run_facts(model)
    patchers = [model, *([clip.load_model()] if clip is not None else [])]
    comfy.model_management.load_models_gpu(patchers)
    stored = model.model_state_dict_for_saving(network, "diffusion_model.")
    quantised = any(name.endswith(".weight_scale") for name in stored)
    whole = clip is not None or vae is not None
    prefix = ALL_IN_ONE_PREFIX if whole else ""
    pending: dict[str, Any] = {}
    layers: list[str] = []
    for name, tensor in stored.items():
        if is_companion(name):
            continue
        like = Stored.like(tensor.shape, tensor.dtype)
        if like.torch_dtype in FP8_DTYPES:
            like = Stored.like(tensor.shape, torch.bfloat16)
        chosen = "fp8" if dtype is None and quantised else dtype
        origin = learnt if learnt is not None and name in learnt else stored
        entries = packed(name, like, partial(value_of, origin, name), chosen)
        pending |= {prefix + entry: value for entry, value in entries.items()}
        if len(entries) > 1:
            layers.append(prefix + name.removesuffix(".weight"))
    parts: dict[str, Tensor] = {}
    if clip is not None:
        parts |= {f"text_encoders.{k}": v for k, v in clip.state_dict_for_saving().items() if "logit_scale" not in k}
    if vae is not None:
        parts |= {f"{VAE_PREFIX}{k}": v for k, v in vae.get_sd().items()}
    for name, tensor in parts.items():
        pending[name] = Pending(Stored.like(tensor.shape, tensor.dtype), partial(_on_cpu, tensor))
    config = CheckpointConfig(model=network.config, run=run)
    metadata = {"config": config.to_json(), "format": "pt"}
    if layers:
        metadata[METADATA_KEY] = quantisation_metadata(layers)
    write_safetensors(path, pending, metadata, report)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.to("cpu")  # core's lazy weights are cast and patched here


def value_of(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight as numbers, whatever it is stored as."""
    tensor = stored[name].to("cpu")
    scale = stored.get(name.removesuffix(".weight") + ".weight_scale")
    return tensor if scale is None else dequantise(tensor, scale.to("cpu"))


def output_file(prefix: str, kind: str) -> Path:
    """The next free ``output/<kind>/<prefix>_00001_.safetensors``; ComfyUI's loaders look there too.

    Raises UniViGUError for a prefix that is empty or leads out of that folder."""
    home = Path(folder_paths.get_output_directory()) / kind
    if not prefix.strip() or not (home / prefix).resolve().is_relative_to(home.resolve()):
        raise UniViGUError(
            f"filename_prefix is {prefix!r}; expected a name such as uni_vigu, or a path inside {home}, such as "
            "mine/uni_vigu"
        )
    home.mkdir(parents=True, exist_ok=True)
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(home))
    return Path(folder) / f"{name}_{counter:05}_.safetensors"


# ------------------------------------------------------------------------------------------------------ conditioning


def tokenizer_of(clip: Any) -> Tokenizer:
    """The SentencePiece tokenizer that a umT5 CLIP carries. Raises UniViGUError for another CLIP."""
    tokenizer = getattr(clip, "tokenizer", None)
    proto = tokenizer.state_dict().get("spiece_model") if hasattr(tokenizer, "state_dict") else None
    if proto is None or getattr(tokenizer, "clip_name", "") != "umt5xxl":
        kind = "no CLIP" if clip is None else f"a CLIP of another kind ({type(tokenizer).__name__})"
        raise UniViGUError(
            f"found {kind}, expected a umT5: it also turns tokens into words. Take the CLIP of Load Uni-ViGU, or Load "
            "CLIP with type wan"
        )
    return Tokenizer(proto.numpy().tobytes(), run_facts(clip))


def encode_prompt(clip: Any, text: str, stream: str | None) -> list[Any]:
    """CONDITIONING with the states of ``text`` and, as the held-clean text stream, the tokens of ``stream``.

    ``stream`` None is the same text; an empty stream is plain Wan. Raises UniViGUError for texts that do not fit.
    """
    tokenizer_of(clip)  # another CLIP is told here, in words
    run = run_facts(clip)
    tokens = clip.tokenize(text)
    length = len(_real_tokens(tokens, run))
    if length > run.context_length:
        raise UniViGUError(
            f"the prompt has {length} tokens and this model reads {run.context_length}: shorten it (words that the "
            "tokenizer does not know are spelled out, a token a letter)"
        )
    words = text if stream is None else stream
    extra: dict[str, Any] = {}
    if words.strip():
        ids = _real_tokens(clip.tokenize(words), run)
        limit = max(run.text_length, run.context_length)
        if len(ids) > limit:
            raise UniViGUError(f"the text-stream text has {len(ids)} tokens; at most {limit} fit: shorten it")
        extra[TEXT_TOKENS] = torch.tensor([ids])
    return clip.encode_from_tokens_scheduled(tokens, add_dict=extra)


def _real_tokens(tokens: Mapping[str, Any], run: RunConfig) -> list[int]:
    """The ids of core's tokenization up to the end of the text; prompt weights and embeddings fall away."""
    ids: list[int] = []
    for token, *_ in tokens["umt5xxl"][0]:
        if isinstance(token, int):
            ids.append(token)
            if token == run.eos_token:
                break
    return ids


def with_tokens_of(positive: list[Any], negative: list[Any]) -> list[Any]:
    """``negative`` with the text stream of ``positive``: both passes of guidance see the same text, as in the
    release."""
    shared = {key: positive[0][1][key] for key in (TEXT_TOKENS, TEXT_MASK) if positive and key in positive[0][1]}
    bare = [[c, {k: v for k, v in extra.items() if k not in (TEXT_TOKENS, TEXT_MASK)}] for c, extra in negative]
    return [[c, extra | shared] for c, extra in bare]


def at_all_times(conditioning: list[Any]) -> list[Any]:
    """CONDITIONING without timestep ranges: a run that describes a clip has only one time for the video."""
    return [
        [c, {k: v for k, v in extra.items() if k not in ("start_percent", "end_percent")}] for c, extra in conditioning
    ]


def no_prompt(model: Any) -> list[Any]:
    """CONDITIONING of no prompt at all: zeros, as in the release's video-to-text."""
    return [[torch.zeros(1, 1, network_of(model).config.text_dim), {}]]


# ---------------------------------------------------------------------------------------------------------- sampling


@dataclass
class TextRun:
    """The text stream of one call of the network, on its way through ComfyUI's guider, and the logits on their way
    back. ``content`` ``[B,L]`` ids or ``[B,L,D]`` vectors, ``time`` ``[B]`` on the network's clock.

    Both passes of guidance see the same text; the logits are the conditional pass's (the mean over several positive
    conditions, where prompts are combined).
    """

    content: Tensor
    time: Tensor
    mask: Tensor | None
    want_velocity: bool
    want_logits: bool
    cache: VideoCache | None = None
    seen: list[Tensor] = field(default_factory=list)
    closed: bool = False  # once the passes of this step are in: what patches ask of the network later is not heard

    def for_batch(self, x: Tensor, passes: Sequence[int]) -> dict[str, Any]:
        """The text for a batch that holds one chunk per entry of ``passes`` (0 conditional, 1 not)."""
        count = len(passes)
        rows = x.shape[0] // count
        heard = self.want_logits and not self.closed
        wanted = [n for n, index in enumerate(passes) if index == 0] if heard else []
        return {
            "content": torch.cat([self.content] * count).to(x.device),
            "time": torch.cat([self.time] * count).to(x.device),
            "mask": None if self.mask is None else torch.cat([self.mask] * count).to(x.device),
            "cache": self.cache,
            "want_velocity": self.want_velocity,
            "logits_rows": slice(wanted[0] * rows, (wanted[-1] + 1) * rows) if wanted else False,
            "chunks": [n - wanted[0] for n in wanted],
            "rows": rows,
            "logits": None,
        }

    def take(self, stream: Mapping[str, Any]) -> None:
        if stream["logits"] is not None:
            chunks = stream["logits"].split(stream["rows"])
            self.seen += [chunks[n].to(self.content.device) for n in stream["chunks"]]

    @property
    def logits(self) -> Tensor | None:
        if len(self.seen) < 2:
            return self.seen[0] if self.seen else None
        return torch.stack(self.seen).mean(0)


class GuidedNetwork:
    """What uvg_core's samplers call in place of the network: the same arguments, answered through ComfyUI's guider,
    so that conditioning, guidance, hooks, patches and wrappers are ComfyUI's own. The prompt condition that it is
    called with is ignored: the guider has it."""

    def __init__(self, guider: Any, extra_args: Mapping[str, Any]) -> None:
        self._guider = guider
        self._options = extra_args["model_options"]
        self._seed = extra_args.get("seed")
        network = guider.inner_model.diffusion_model
        self.config: ModelConfig = network.config
        self.embed = network.embed
        self._last_logits: Tensor | None = None
        self._shape: list[int] = []  # of the latent in the pass under way

    def video_cache(self, **settings: Any) -> VideoCache | None:
        """A cache within the memory that ComfyUI has left. None where one does not hold: several prompts, and context
        windows, each make something else of the clip, and patches of blocks expect to see all of it."""
        options = self._options.get("transformer_options", {})
        patched = any(options.get("patches", {}).values()) or options.get("patches_replace", {}).get("dit")
        divided = any(self._options.get(name) for name in ("context_handler", "multigpu_clones"))
        if patched or divided or len(self._guider.conds["positive"]) != 1:
            log.info(
                "Uni-ViGU: every step looks at the clip, because of patches on the model, context windows or several "
                "prompts"
            )
            return None
        return VideoCache(free_bytes=self._free_memory, **settings)

    def _free_memory(self, device: torch.device) -> float:
        """What ComfyUI could still give, weights that it may put aside included, without what the pass itself takes."""
        model = self._guider.inner_model
        free = model.current_patcher.get_free_memory(device) - comfy.model_management.extra_reserved_memory()
        return float(free - model.memory_required(self._shape))

    def __call__(
        self,
        video: Tensor,
        text: Tensor,
        time_video: Tensor,
        time_text: Tensor,
        context: Tensor,
        text_mask: Tensor | None = None,
        *,
        want_velocity: bool = True,
        want_logits: bool = True,
        cache: VideoCache | None = None,
    ) -> Prediction:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._shape = list(video.shape)
        run = TextRun(text, time_text, text_mask, want_velocity, want_logits, cache)

        def close(args: Mapping[str, Any]) -> Any:
            run.closed = True  # skip-layer guidance and its like run the network again, worse on purpose
            return args["conds_out"]

        options = {
            **self._options,
            "transformer_options": {**self._options.get("transformer_options", {}), TEXT_STREAM: run},
            "sampler_pre_cfg_function": [close, *self._options.get("sampler_pre_cfg_function", [])],
        }
        sigma = sigma_from_model_time(time_video)
        denoised = self._guider(video, sigma, model_options=options, seed=self._seed)
        velocity = (video - denoised) / sigma.view(-1, 1, 1, 1, 1) if want_velocity else None
        if want_logits and run.logits is not None:
            self._last_logits = run.logits
        if want_logits and self._last_logits is None:
            raise UniViGUError(
                "no prompt is active at the first step, so that the text has nothing to follow; remove the timestep "
                "range from the positive prompt"
            )
        # A patch that reuses an earlier step in place of the network (EasyCache) reuses that step's text as well.
        return Prediction(velocity, self._last_logits if want_logits else None)


Job = Callable[[GuidedNetwork, Tensor, Tensor], Tensor]


class _JobSampler(comfy.samplers.Sampler):
    """A run of uvg_core's samplers where ComfyUI expects a sampler."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: Mapping[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        return self.job(GuidedNetwork(model_wrap, extra_args), noise, latent_image)


def run_job(
    model: Any,
    job: Job,
    *,
    positive: list[Any],
    negative: list[Any] | None = None,
    cfg: float = 1.0,
    noise: Tensor,
    latent: Tensor,
    sigmas: Tensor,
    seed: int,
    text_length: int = 0,
) -> Tensor:
    """Run ``job(network, noise, latent)`` with MODEL loaded and patched by ComfyUI; noise and latents inside are in the
    network's space. ``text_length``: tokens of the job's text, 0 for what the checkpoint was trained with. Returns the
    job's latent in the VAE's space, on the CPU."""
    guider = comfy.samplers.CFGGuider(model)
    if negative is None:
        guider.inner_set_conds({"positive": positive})
    else:
        guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    host = guider.model_patcher.model  # hooks may have put another one in its place
    usual = host.run_facts.text_length
    host.text_length, host.wants_logits = text_length or usual, True
    try:
        out = guider.sample(noise, latent, _JobSampler(job), sigmas, seed=seed)
    finally:
        host.text_length, host.wants_logits = usual, False
    return out.to(comfy.model_management.intermediate_device())


def run_on_clip(
    model: Any,
    job: Job,
    latent: Tensor,
    *,
    seed: int,
    hint: list[Any] | None = None,
    steps: int = 1,
    text_length: int = 0,
) -> None:
    """``run_job`` for jobs that look at clips, clean latents in the VAE's space: no noise, no guidance, and no prompt
    but the hint."""
    run_job(
        model,
        job,
        positive=at_all_times(hint) if hint else no_prompt(model),
        noise=torch.zeros_like(latent),
        latent=latent,
        sigmas=torch.zeros(steps + 1),
        seed=seed,
        text_length=text_length,
    )


def core_samplers() -> list[str]:
    return list(comfy.samplers.SAMPLER_NAMES)


def core_schedulers() -> list[str]:
    return list(comfy.samplers.SCHEDULER_NAMES)


def with_shift(model: Any, shift: float) -> Any:
    """A clone of MODEL whose sigmas are shifted by ``shift`` (what core's ModelSamplingSD3 node does)."""

    class Shifted(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = Shifted(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    shifted = model.clone()
    shifted.add_object_patch("model_sampling", sampling)
    return shifted


def guided_until(model: Any, end: float, sigmas: Tensor) -> Any:
    """A clone of MODEL that is guided for the share ``end`` of the steps at ``sigmas``, and then makes the pass with
    the prompt alone (arXiv 2404.07724: late guidance costs as much as early guidance and changes little)."""
    if end >= 1:
        return model
    last = sigmas[math.ceil(end * (len(sigmas) - 1) - 1e-9)]

    def predict(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        kept = guider.cfg
        try:
            if float(timestep.max()) <= float(last):
                guider.cfg = 1.0
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = kept

    guided = model.clone()
    guided.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "uni_vigu_guidance", predict)
    return guided


def prepare_noise(latent: Mapping[str, Any], seed: int) -> Any:
    """The noise that core's samplers draw for a LATENT and a seed."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def sample_with_core(
    model: Any,
    latent: Mapping[str, Any],
    *,
    positive: list[Any],
    negative: list[Any],
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float,
    sigmas: Tensor | None,
    guidance_end: float = 1.0,
) -> Any:
    """Core's own sampling, with its noise, previews and masks; ``sigmas`` in place of the scheduler's where given;
    ``guidance_end`` as in ``guided_until``."""
    samples = comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    latent = {**latent, "samples": samples}
    planned = sigmas
    if planned is None:
        planned = comfy.samplers.KSampler(
            model, steps=steps, device=model.load_device, sampler=sampler, scheduler=scheduler, denoise=denoise
        ).sigmas
        if not bool(planned.isfinite().all()):
            raise UniViGUError(
                f"the scheduler {scheduler} cannot make {steps} step(s): take more steps or another scheduler"
            )
    return comfy.sample.sample(
        guided_until(model, guidance_end, planned),
        prepare_noise(latent, seed),
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        samples,
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        sigmas=sigmas,
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


# ----------------------------------------------------------------------------------------------------------- latents


def require_video_latent(samples: Any, config: ModelConfig) -> None:
    """Raise UniViGUError unless ``samples`` are a video latent ``[B,16,F,H,W]`` of this model."""
    if getattr(samples, "is_nested", False):
        raise UniViGUError(
            "found a latent with a text stream (nested); expected the video alone: take it out with Split Uni-ViGU "
            "Latent"
        )
    if samples.ndim != 5 or samples.shape[1] != config.in_dim:
        raise UniViGUError(
            f"found a latent of shape {list(samples.shape)}; expected [batch, {config.in_dim}, frames, height/8, "
            "width/8]: it was made for another model. Make it with Empty Uni-ViGU Latent, or with Encode Video for "
            "Uni-ViGU and the VAE of Load Uni-ViGU"
        )


def nested(video: Tensor, text: Tensor) -> Any:
    """A latent of two streams."""
    return comfy.nested_tensor.NestedTensor((video, text))


def streams_of(latent: Mapping[str, Any]) -> list[Tensor]:
    """Video ``[B,C,F,H,W]`` and, in a nested latent, text ``[B,D,L]``."""
    samples = latent["samples"]
    return samples.unbind() if getattr(samples, "is_nested", False) else [samples]


def empty_latent(shape: Sequence[int]) -> Tensor:
    return torch.zeros(tuple(shape), device=comfy.model_management.intermediate_device())


def nearest_words(model: Any, vectors: Tensor) -> Tensor:
    """Token ids ``[B,L]`` of the rows of E nearest to ``vectors`` ``[B,L,D]``, with MODEL loaded for it."""
    network = network_of(model)
    comfy.model_management.load_models_gpu([model])
    vectors = vectors.to(model.load_device)
    return nearest_tokens(network.embed, network.config.token_rows, vectors).cpu()


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """uint8 ``[T,H,W,3]`` -> latent ``[1,16,F,h,w]`` in the VAE's space."""
    return vae.encode(pixels.float() / 255)


def decode_latent(vae: Any, latent: Tensor) -> Tensor:
    """Latent ``[1,16,F,h,w]`` in the VAE's space -> uint8 ``[T,H,W,3]``."""
    pixels = vae.decode(latent)
    return (pixels.reshape(-1, *pixels.shape[-3:]).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def is_wan_vae(vae: Any) -> bool:
    """Whether VAE speaks Wan 2.1's latents: Wan's own, or a tiny one made for them. (HunyuanVideo's and Cosmos' have 16
    channels as well.)"""
    kinds = (comfy.ldm.wan.vae.WanVAE, comfy.taesd.taehv.TAEHV)
    return isinstance(getattr(vae, "first_stage_model", None), kinds) and vae.latent_channels == 16


def require_video_vae(vae: Any) -> None:
    """Raise UniViGUError unless VAE is one whose latents the network reads."""
    if not is_wan_vae(vae):
        raise UniViGUError(
            f"found a VAE with {getattr(vae, 'latent_channels', 'unknown')} latent channels, expected the Wan 2.1 VAE "
            "(16, video): take the VAE of Load Uni-ViGU, or Load VAE with wan_2.1_vae"
        )


# ---------------------------------------------------------------------------------------------------- what users see


class Progress:
    """The bar, the preview and the live text of one node while it works. Raises where the user has cancelled."""

    def __init__(self, node_id: str | None, model: Any | None = None, steps: int = 1) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(steps)
        self._preview = None if model is None else latent_preview.prepare_callback(model, steps)
        self._last = 0.0

    def step(self, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, total)

    def video(self, done: int, total: int, estimate: Tensor, latent: Tensor) -> None:
        """A step of a run that forms video: the stock preview of where it points."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        assert self._preview is not None
        self._preview(done - 1, estimate, latent, total)

    def picture(self, done: int, total: int, picture: Any) -> None:
        """A step with a Pillow picture to show for it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, total, ("JPEG", picture, None))

    def text(self, text: str, *, last: bool = False) -> None:
        """Show text in the node, at most ten times a second."""
        now = time.monotonic()
        server = getattr(PromptServer, "instance", None)  # absent where nodes run without a server
        if server is not None and self._node_id is not None and (last or now - self._last > 0.1):
            server.send_progress_text("".join(c if c.isprintable() or c == "\n" else "·" for c in text), self._node_id)
            self._last = now


def input_directory() -> Path:
    return Path(folder_paths.get_input_directory())


def offer_samples() -> None:
    """Put the sample clips that the shipped workflows name, and their texts, into ComfyUI's input folder, where they
    are not there yet: it is the only place that Load Video reads from."""
    for sample in (path for path in (PACK / "samples").rglob("*") if path.suffix in (".mp4", ".txt")):
        target = input_directory() / sample.relative_to(PACK / "samples")
        if not target.exists():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(sample, target)
            except OSError as error:  # a read-only input folder
                log.warning("Uni-ViGU: the sample clip %s could not be put into %s (%s)", sample.name, target, error)
