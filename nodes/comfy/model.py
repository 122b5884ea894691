"""Our network as one of ComfyUI's models, registered, so that core's own loaders find it.

Legend: B batch, C latent channels, F H W latent frames, height, width, V video and T text tokens, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.nested_tensor
import comfy.supported_models
import comfy.text_encoders.sd3_clip
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...uvg_core.checkpoint.keys import CONFIG_KEY, ENCODER_PREFIX
from ...uvg_core.config import CheckpointConfig, ModelConfig, RunConfig
from ...uvg_core.errors import UniViGUError
from ...uvg_core.io import MEGABYTE, PACK
from ...uvg_core.media.text_encoder import encoder_config
from ...uvg_core.model.memory import pass_bytes, video_tokens
from ...uvg_core.sampling.start import require_ids
from .latents import require_video_latent
from .loading import encoder_target, part_of
from .names import FOLDER, TEXT_MASK, TEXT_TOKENS, TEXT_WEIGHT
from .network import HostedNetwork, TextInput, weights_of
from .precision import Float16Watch, all_finite, inference_dtypes

# In memory around a pass, for each of its rows: latents (noise, masks, sums, what comes and goes), prompt conditions.
LATENTS, CONDITIONS = 10, 3.5


class RawWan(comfy.latent_formats.Wan21):
    """Latents as the VAE gives them, for checkpoints trained without Wan's per-channel mean and std."""

    latent_rgb_factors: list[list[float]]
    latent_rgb_factors_bias: list[float]

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
        self.text_length, self.word_rows = run.text_length, 0  # tokens of the text; rows that words are drawn for
        self.held: tuple[bool, ...] = ()  # which streams its mask holds clean: see scale_latent_inpaint
        self.float16 = Float16Watch()
        self.squeezed = False  # in fewer bits than the file has, because the card is small
        self.file_dtypes: dict[str, torch.dtype] = {}  # of the weights, which core may widen for computing

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", **kwargs: Any) -> Any:
        """Strict where core only logs: a network with holes in it makes noise, not an error."""
        # Not the network's own list: core makes some weights only as they are loaded (dynamic VRAM, comfy_quant).
        wanted = weights_of(self.config).keys()
        sd.pop(unet_prefix + CONFIG_KEY, None)
        missing = sorted(name for name in wanted if unet_prefix + name not in sd)
        if missing:
            raise UniViGUError(
                f"the checkpoint lacks {len(missing)} of {len(wanted)} tensors of the network, first {missing[0]}; "
                "expected all of them. The file is incomplete: download or convert it again"
            )
        self.file_dtypes = {name: sd[unet_prefix + name].dtype for name in wanted}
        return super().load_model_weights(sd, unet_prefix, **kwargs)

    def state_dict_for_saving(self, unet_state_dict: dict[str, Tensor], *parts: Any, **more: Any) -> Any:
        """What core's savers write: of metadata they keep their own only, and a file without ours is run as it was not
        trained (grey clips)."""
        text = CheckpointConfig(self.config, self.run_facts).to_json()
        facts = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        return super().state_dict_for_saving({**unet_state_dict, CONFIG_KEY: facts}, *parts, **more)

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
        """Here, once before a run: what is looked at or sent in a pass holds the card up, every time."""
        out = super().extra_conds(**kwargs)
        states, device = kwargs.get("cross_attn"), kwargs.get("device")
        if states is not None and states.shape[-1] != self.config.text_dim:
            raise UniViGUError(
                f"the prompt comes from a text encoder of width {states.shape[-1]}; this model expects width "
                f"{self.config.text_dim}. Take the CLIP of Load Uni-ViGU with the text encoder that the checkpoint "
                "was trained with (umT5-XXL for the released model)"
            )
        if states is not None and device is not None:
            out["c_crossattn"] = comfy.conds.CONDCrossAttn(states.to(device))
        tokens, mask = kwargs.get(TEXT_TOKENS), kwargs.get(TEXT_MASK)
        if tokens is not None:
            require_ids(self.config, tokens)
            out["text_tokens"] = comfy.conds.CONDRegular(tokens.to(device))
            if mask is not None:
                out["text_mask"] = comfy.conds.CONDRegular(mask.int().to(device))
        shapes, mask, self.held = kwargs.get("latent_shapes"), kwargs.get("denoise_mask"), ()
        if shapes is None or len(shapes) < 2:
            require_video_latent(kwargs.get("noise"), self.config)
            return out
        self._require_text_stream(shapes[1])
        parts = [] if mask is None else comfy.utils.unpack_latents(mask, shapes)
        self.held = tuple(not bool(part.any()) for part in parts) or (False,) * len(shapes)
        constants = {"latent_shapes": shapes, "held": self.held}
        return out | {name: comfy.conds.CONDConstant(value) for name, value in constants.items()}

    def _require_text_stream(self, shape: Sequence[int]) -> None:
        """Raise UniViGUError unless the model takes a second stream of that shape."""
        if self.config.text_flow != "embedding":
            raise UniViGUError(
                "found a latent with a text stream, and a checkpoint with the discrete text flow; expected the video "
                "alone: use Joint Sampler or Video-to-Text Denoise, or an embedding-flow checkpoint"
            )
        if shape[1] != self.config.dim:
            raise UniViGUError(
                f"the latent's text stream is {shape[1]} wide; this model expects {self.config.dim}: it was made for "
                "another model. Make it with Empty Uni-ViGU Latent and this MODEL"
            )

    def process_timestep(self, timestep: Tensor, **kwargs: Any) -> Any:
        """Each stream's own clock: one that is held clean stands at 0."""
        held = kwargs.get("held")
        if held is None:
            return timestep
        return tuple(torch.zeros_like(timestep) if is_held else timestep for is_held in held)

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs: Any) -> Tensor:
        """What stands where the mask is 0: noised as usual; the clean latent in a stream held as a whole, and in the
        video of a checkpoint that was trained so.

        The mask is the one that the conditions of this run were made with: ComfyUI hands it over here only since
        0.33, and the clocks (``process_timestep``) go by it too."""
        noised = super().scale_latent_inpaint(sigma=sigma, noise=noise, latent_image=latent_image, **kwargs)
        is_clean, parts = self.config.held_parts == "clean", self._streams(noised)
        if parts is None:
            return latent_image if is_clean else noised
        held = (*self.held, *[False] * len(parts))[: len(parts)]
        held = (held[0] or is_clean, *held[1:])
        clean = comfy.utils.unpack_latents(latent_image.expand_as(noised), self.latent_shapes)
        return comfy.utils.pack_latents([c if h else n for c, n, h in zip(clean, parts, held, strict=True)])[0]

    def memory_required(self, input_shape: Any, cond_shapes: Mapping[str, Any] | None = None) -> float:
        """What a pass needs beside the weights (``uvg_core/model/memory.py``).

        A packed latent counts channels as pixels: it is estimated as the video that it holds, or, where its streams
        are not known yet, as if all of it were video."""
        shapes, config, rows = self.latent_shapes, self.config, input_shape[0]
        if len(input_shape) == 3 and shapes is not None and len(shapes) > 1:
            input_shape = [rows, *shapes[0][1:]]
        patch = config.in_dim * math.prod(config.patch_size)
        packed = len(input_shape) == 3
        video = -(-math.prod(input_shape[1:]) // patch) if packed else video_tokens(input_shape[2:], config)
        words = self.word_rows
        needed = pass_bytes(
            config,
            rows=rows,
            video=video,
            text=self.text_length,
            itemsize=comfy.model_management.dtype_size(self.get_dtype_inference()),
            logits=min(rows, max(words, rows - words)) if words else 0,  # one pass of guidance has none
        )
        # What core keeps around a pass, in float32.
        needed += 4 * rows * (LATENTS * video * patch + CONDITIONS * self.run_facts.context_length * config.text_dim)
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
        """In float16, look at the first step of a run, and where it is not finite make it again in float32."""
        given = (c_concat, c_crossattn, control, transformer_options)
        text: TextInput | None = kwargs.get("sampler_text")
        logits = [] if text is None else text.logits
        before = len(logits)
        watched = self.float16.wants(self, transformer_options or {})
        out: Tensor = super()._apply_model(x, t, *given, **kwargs)
        if watched and not all_finite(out, *logits[before:]):
            del out, logits[before:]
            if text is not None and text.options.cache is not None:
                text.options.cache.clear()  # what was kept in passing is not finite either
            self.float16.widen(self, tuple(x.shape))
            out = super()._apply_model(x, t, *given, **kwargs)
        return out


class UniViGUConfig(comfy.supported_models.WAN21_T2V):
    """How core's loaders recognise our files: Wan2.1 text-to-video with a text head."""

    required_keys = {"{}" + TEXT_WEIGHT: 1}  # noqa: RUF012 (core's own form)
    sampling_settings = {"shift": 3.0}  # noqa: RUF012

    @property
    def supported_inference_dtypes(self) -> list[torch.dtype]:
        return inference_dtypes()

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> UniViGUModel:
        carried = state_dict.get(prefix + CONFIG_KEY)
        if carried is not None and carried.numel() <= MEGABYTE:  # a file of core's savers
            with suppress(ValueError, AttributeError, RecursionError):
                data = json.loads(bytes(carried.flatten().tolist()))
                self.unet_config.update(data.pop("transformer", {}) | data)
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
        weights = part_of(state_dict or {}, ENCODER_PREFIX)
        detected = comfy.text_encoders.sd3_clip.t5_xxl_detect(state_dict or {}, ENCODER_PREFIX)
        run = self._run()
        return encoder_target(encoder_config(weights) if weights else {}, detected, run, run.text_states == "release")


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
