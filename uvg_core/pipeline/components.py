"""The parts of a run - tokenizer, text encoder, network, VAE - and where they are at any moment.

They come from one all-in-one file, or from a checkpoint and the files that ``components.py`` finds for it. A part is
loaded when it is first used, moves to the device for as long as it works, and leaves; two of them are never there
together. Network and VAE wait in memory for their next turn, a large text encoder is let go: it is used once and is the
largest of all. Where even it alone is too large for the device, it works there one matrix at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint import load_model, read_config
from ..checkpoint.lora import Lora, LoraChoice, open_loras
from ..checkpoint.quant import FP8_DTYPES
from ..checkpoint.read import WeightFile, open_weights
from ..config import TEXT_STATES, CheckpointConfig
from ..errors import UniViGUError
from ..media.text_encoder import load_encoder, move_encoder
from ..media.tokenizer import Tokenizer
from ..media.vae import channels_last, load_vae
from ..model import UniViGU
from ..model.kv_cache import SHARE_OF_FREE, free_memory
from ..progress import Report
from .locate import Source, find_components

log = logging.getLogger(__name__)

PACKAGES = ("diffusers", "transformers", "sentencepiece")
LARGE_BYTES = 2**30
SPARE_BYTES = 2**30  # that a large text encoder must leave on the device, for its activations and for everybody else

Part = TypeVar("Part", bound=nn.Module)


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is. Raises UniViGUError for one that is not here."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            here.append("mps")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UniViGUError(f"device {device!r} cannot be used ({reason}); found here: {', '.join(here)}") from None
    return chosen


def has_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA or ROCm card computes in bfloat16 by itself: NVIDIA's do from Ampere on."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def free_bytes(device: torch.device) -> float:
    """All that is free on a device; 0 where torch cannot tell."""
    return free_memory(device) / SHARE_OF_FREE


class OutOfMemory(torch.OutOfMemoryError):
    """A part did not fit; the message says what can help."""

    def __init__(self, part: str, device: torch.device, error: BaseException, dtype: torch.dtype | None) -> None:
        smaller = "a smaller --height or --width, or fewer --frames"
        help_for = {
            "network": f"use {smaller}"
            + (", or --dtype bf16" if dtype == torch.float32 else "")
            + ("" if device.type == "cpu" else ", or close other programs on the device"),
            "encoder": "its size does not depend on the clip: use umt5_xxl_fp8_e4m3fn_scaled.safetensors (6.7 GB), or "
            "close other programs",
            "vae": f"use {smaller}"
            + ("" if device.type == "cpu" else ", close other programs on the device, or pass --device cpu"),
        }
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        name = {"encoder": "text encoder", "vae": "VAE"}.get(part, part)
        super().__init__(f"out of memory for the {name} on {device} ({reason}); {help_for[part]}")


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")  # MPS; the CPU on Linux and on Windows
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


class Parts:
    """Loads the parts of a checkpoint and keeps them off the device when they do not work.

    Args as for ``Pipeline``. Raises UniViGUError at once, before any work, for a checkpoint, files beside it, a device
    or packages that cannot do the job; OutOfMemory, with advice, for a part that does not fit.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        wan: str | Path | None,
        device: str | torch.device | None,
        dtype: torch.dtype | None,
        text_states: str | None,
        overrides: Mapping[str, Any],
        progress: Report | None,
        config: CheckpointConfig | None = None,
        text_encoder: str | Path | None = None,
        vae: str | Path | None = None,
        tokenizer: str | Path | None = None,
        comfyui: str | Path | None = None,
        loras: Sequence[str | Path | LoraChoice | Lora] = (),
    ) -> None:
        self.path = Path(model)
        self.device, self.dtype = usable_device(device), dtype
        self.encoder_device, self._said_where = self.device, False
        self.overrides, self.progress = dict(overrides), progress
        # A Wan base, from which training starts, does not say how long its texts will be: then the caller does.
        self.config: CheckpointConfig = config or read_config(self.path, **self.overrides)
        self.text_states = text_states or self.config.run.text_states or TEXT_STATES[0]
        self.loras = open_loras(loras, self.config.model)
        self._waiting: dict[str, nn.Module] = {}
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            raise UniViGUError(
                f"packages {', '.join(missing)} are not installed: "
                "pip install -e '.[standalone]' in the project's folder"
            )
        named = {"wan": wan, "comfyui": comfyui, "text_encoder": text_encoder, "vae": vae, "tokenizer": tokenizer}
        self.components = find_components(
            self.path,
            text_dim=self.config.model.text_dim if self.config.model.vocab_size else 0,  # of a Wan base not read yet
            **{name: None if path is None else Path(path).expanduser() for name, path in named.items()},
        )
        for note in self.components.notes:
            log.warning(note)
        spiece = self.components.tokenizer
        try:
            self.tokenizer = Tokenizer(spiece.tokenizer_bytes(), self.config.run)
        except UniViGUError as error:
            raise UniViGUError(
                f"{spiece.path}: {error}" if str(spiece.path) not in str(error) else str(error)
            ) from None

    @property
    def network_dtype(self) -> torch.dtype | None:
        """Of the network's weights; None is what the file holds. Small networks take float32. Large ones take bfloat16
        on a card, whatever the file holds, or float16 where the card has no bfloat16 of its own."""
        if self.dtype is not None:
            return self.dtype
        if self.device.type in ("cpu", "cuda") and self.path.is_file() and self.path.stat().st_size < LARGE_BYTES:
            return torch.float32
        if self.device.type == "cuda":
            return torch.bfloat16 if has_bfloat16(self.device) else torch.float16
        return None

    @property
    def float16_unasked(self) -> bool:
        """Whether the network computes in float16 because the card has nothing better: its results need watching."""
        return self.dtype is None and self.network_dtype == torch.float16

    def in_float32(self) -> None:
        """From now on the network computes in float32."""
        self.dtype = torch.float32
        self._waiting.pop("network", None)

    def run_encoder_as(self, text_states: str) -> None:
        """From now on the text encoder is run so (see ``TextEncoder``)."""
        if text_states != self.text_states:
            self.text_states = text_states
            self._waiting.pop("encoder", None)

    def run_as(self, config: CheckpointConfig) -> None:
        """From now on the same weights are run by other facts: latent space, clocks, text states."""
        self.config = config
        self.overrides |= {name: getattr(config.model, name) for name in ("latent_space", "time_rounding")}
        network = self._waiting.get("network")
        if isinstance(network, UniViGU):
            network.config = config.model
        self.run_encoder_as(config.run.text_states or TEXT_STATES[0])

    def _load(self, part: str) -> nn.Module:
        if part == "network":
            overrides = {name: value for name, value in self.overrides.items() if name != "run"}
            progress = self._reporting("network")
            return load_model(self.path, dtype=self.network_dtype, on_progress=progress, loras=self.loras, **overrides)
        if part == "vae":
            vae = self._from(self.components.vae, "VAE", load_vae)
            if self.device.type == "cuda" and vae.dtype == torch.bfloat16 and not has_bfloat16(self.device):
                vae = vae.float()
            return channels_last(vae) if self.device.type == "cpu" else vae
        build: Callable[[dict[str, Tensor]], Any] = lambda weights: load_encoder(weights, self.text_states)  # noqa: E731
        return self._from(self.components.encoder, "text encoder", build)

    def _from(self, source: Source, part: str, build: Callable[[dict[str, Tensor]], Any]) -> Any:
        """A part from its tensors; messages name the file."""
        file = open_weights(source.path)
        names = [name for name in file.tensors if name.startswith(source.prefix)]
        total = sum(file.tensors[name].nbytes for name in names)
        report, done, weights = self._reporting(part), 0, {}
        for name in names:
            weights[name.removeprefix(source.prefix)] = self._comfortable(file, name, total)
            done += file.tensors[name].nbytes
            if report is not None:
                report(done, total)
        try:
            return build(weights)
        except UniViGUError as error:
            raise UniViGUError(f"{source.path}: {error}") from None

    def _comfortable(self, file: WeightFile, name: str, total: int) -> Tensor:
        """A tensor in the dtype it works best in: small parts in float32 on the CPU; large ones never in float32 (Wan's
        text encoder is stored so, 23 GB of it)."""
        tensor = file.read(name)
        if not tensor.is_floating_point() or tensor.dtype in FP8_DTYPES:  # fp8 has a scale beside it
            return tensor
        if total < LARGE_BYTES:
            return tensor.float() if self.device.type == "cpu" else tensor
        return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor

    def _reporting(self, part: str) -> Callable[[int, int], object] | None:
        report = self.progress
        return None if report is None else lambda done, total: report(f"loading the {part}", done, total)

    @contextmanager
    def using(self, part: str) -> Iterator[nn.Module]:
        """``network``, ``encoder`` or ``vae`` on the device for the length of a block (the encoder on its own one).

        Afterwards it leaves the device whatever happens, and whoever still holds it. Raises OutOfMemory."""
        module = self._waiting.pop(part, None) or self._load(part)
        try:
            yield self._placed(module) if part == "encoder" else module.to(self.device)
        except Exception as error:
            if isinstance(error, OutOfMemory) or not _is_out_of_memory(error):
                raise
            dtype = next(module.parameters()).dtype
            device = self.encoder_device if part == "encoder" else self.device
            raise OutOfMemory(part, device, error, dtype) from None
        finally:
            if part == "encoder" and bytes_of(module) >= LARGE_BYTES:
                module.to("meta")
            else:
                self._waiting[part] = module.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _placed(self, encoder: nn.Module) -> nn.Module:
        """The text encoder on its device or, where it is too large for that, at work there from the CPU's memory."""
        size, device = bytes_of(encoder), self.encoder_device
        if device.type == "cpu" or size < LARGE_BYTES or size + SPARE_BYTES <= (free := free_bytes(device)):
            return encoder.to(device)
        said, self._said_where = self._said_where, True
        log.log(
            logging.DEBUG if said else logging.WARNING,
            f"the text encoder takes {size / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free: it stays in the "
            "machine's own memory, and each matrix goes there as it is used",
        )
        return move_encoder(encoder, device)

    @contextmanager
    def network(self) -> Iterator[UniViGU]:
        """The network, on the device for the length of a block."""
        with self.using("network") as module:
            assert isinstance(module, UniViGU)
            yield module


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())
