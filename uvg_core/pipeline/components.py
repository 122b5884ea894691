"""The components of a run - tokenizer, text encoder, network, VAE - and which of them is on the device.

They come from one all-in-one file, or from a checkpoint and the files that ``component_files.py`` finds for it. A
component is loaded when it is first used, moves to the device while it works, and leaves it afterwards; two are never
there at once. Network and VAE then wait in the machine's memory. A large text encoder is freed: it is used once and is
the largest.
Where even the text encoder alone is too large for the device, its matrices go there one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint import Overrides, load_model, read_config
from ..checkpoint.lora import Lora, LoraChoice, open_loras
from ..checkpoint.quant import FP8_DTYPES
from ..checkpoint.read import open_weights
from ..config import TEXT_STATES, CheckpointConfig
from ..errors import UniViGUError
from ..media.text_encoder import load_encoder, move_encoder
from ..media.tokenizer import Tokenizer
from ..media.vae import channels_last, load_vae
from ..model import UniViGU
from ..model.memory import SHARE_OF_FREE, free_memory
from ..progress import Report
from .component_files import IN_CHECKPOINT, ComponentFile, Places, find_component_files

log = logging.getLogger(__name__)

PACKAGES = ("diffusers", "transformers", "sentencepiece")
LARGE_BYTES = 2**30
SPARE_BYTES = 2**30  # that a large text encoder must leave on the device, for its activations and for everybody else
Result = TypeVar("Result")
NAMES = {"network": "network", "encoder": "text encoder", "vae": "VAE"}


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is. Raises UniViGUError for one that is not here."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type == "meta" or (chosen.type == "cpu" and chosen.index):
            raise ValueError("there is no such device")
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


class _NotFinite(Exception):
    """The network's first pass gave numbers that are not finite."""


class OutOfMemory(torch.OutOfMemoryError):
    """A component did not fit; the message says what can help."""

    def __init__(self, name: str, device: torch.device, error: BaseException, dtype: torch.dtype | None) -> None:
        on_card = device.type != "cpu"
        advice = "use a smaller --height or --width, or fewer --frames"
        if name == "encoder":
            advice = (
                "its size does not depend on the clip: use umt5_xxl_fp8_e4m3fn_scaled.safetensors (6.7 GB), or close "
                "other programs"
            )
        elif name == "network":
            advice += ", or --dtype bf16" if dtype == torch.float32 else ""
            advice += ", or close other programs on the device" if on_card else ""
        elif on_card:
            advice += ", close other programs on the device, or pass --device cpu"
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        super().__init__(f"out of memory for the {NAMES[name]} on {device} ({reason}); {advice}")


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")  # MPS; the CPU on Linux and on Windows
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


class Components:
    """Loads the components of a checkpoint and keeps them off the device while they do not work.

    Args:
        model, places, device, dtype, overrides, progress, loras: as for ``Pipeline``.
        config: the checkpoint's facts where the file does not state them all, as for a Wan base that is to be trained;
            None reads them from the file.

    Raises UniViGUError before any work for a checkpoint, files beside it, a device or packages that cannot do the job;
    OutOfMemory, with advice, for a component that does not fit.
    """

    def __init__(
        self,
        model: str | Path,
        places: Places = IN_CHECKPOINT,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        overrides: Overrides | None = None,
        progress: Report | None = None,
        config: CheckpointConfig | None = None,
        loras: Sequence[str | Path | LoraChoice | Lora] = (),
    ) -> None:
        self.path = Path(model)
        self.device, self.dtype = usable_device(device), dtype
        self.encoder_device, self._warned_of_size = self.device, False
        self.overrides, self.progress = overrides or Overrides(), progress
        self.config: CheckpointConfig = config or read_config(self.path, self.overrides)
        self.text_states: str = self.overrides.text_states or self.config.run.text_states or TEXT_STATES[0]
        self.loras = open_loras(loras, self.config.model)
        self._waiting: dict[str, nn.Module] = {}
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            raise UniViGUError(
                f"packages {', '.join(missing)} are not installed: "
                "pip install -e '.[standalone]' in the project's folder"
            )
        known = self.config.model.vocab_size  # 0 for a Wan base, whose text_dim was not read either
        self.files = find_component_files(self.path, places, text_dim=self.config.model.text_dim if known else 0)
        for note in self.files.notes:
            log.warning(note)
        with _naming(self.files.tokenizer.path):
            self.tokenizer = Tokenizer(self.files.tokenizer.read_tokenizer(), self.config.run)

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

    def run_encoder_as(self, text_states: str) -> None:
        """From now on the text encoder gives these text states (see ``TextEncoder``)."""
        if text_states != self.text_states:
            self.text_states = text_states
            self._waiting.pop("encoder", None)

    def run_as(self, config: CheckpointConfig) -> None:
        """From now on the same weights run with another latent space, time rounding and text states."""
        self.config = config
        facts = config.model
        self.overrides = replace(self.overrides, latent_space=facts.latent_space, time_rounding=facts.time_rounding)
        network = self._waiting.get("network")
        if isinstance(network, UniViGU):
            network.config = config.model
        self.run_encoder_as(config.run.text_states or TEXT_STATES[0])

    def _load(self, name: str) -> nn.Module:
        if name == "network":
            return load_model(
                self.path,
                dtype=self.network_dtype,
                overrides=self.overrides,
                on_progress=self._reporting(name),
                loras=self.loras,
            )
        file = self.files.encoder if name == "encoder" else self.files.vae
        weights = self._read(file, name)
        with _naming(file.path):
            if name == "encoder":
                return load_encoder(weights, self.text_states)
            vae: nn.Module = load_vae(weights)
        if self.device.type == "cpu":
            return channels_last(vae)
        in_bfloat16 = next(vae.parameters()).dtype == torch.bfloat16
        return vae.float() if in_bfloat16 and self.device.type == "cuda" and not has_bfloat16(self.device) else vae

    def _read(self, file: ComponentFile, name: str) -> dict[str, Tensor]:
        """The weights in the dtypes they work best in: small components in float32 on the CPU, large ones never in
        float32 (as Wan's text encoder is stored, in 23 GB)."""
        opened, report = open_weights(file.path), self._reporting(name)
        stored = {key: one for key, one in opened.tensors.items() if key.startswith(file.prefix)}
        total, done, weights = sum(one.nbytes for one in stored.values()), 0, {}
        for key, one in stored.items():
            tensor = opened.read(key)
            if tensor.is_floating_point() and tensor.dtype not in FP8_DTYPES:  # fp8 has a scale beside it
                if total < LARGE_BYTES and self.device.type == "cpu":
                    tensor = tensor.float()
                elif total >= LARGE_BYTES and tensor.dtype == torch.float32:
                    tensor = tensor.bfloat16()
            weights[key.removeprefix(file.prefix)] = tensor
            done += one.nbytes
            if report is not None:
                report(done, total)
        return weights

    def _reporting(self, name: str) -> Callable[[int, int], object] | None:
        return None if self.progress is None else partial(self.progress, f"loading the {NAMES[name]}")

    @contextmanager
    def using(self, name: str) -> Iterator[nn.Module]:
        """``network``, ``encoder`` or ``vae`` on the device for the length of a block (the encoder on its own one).

        Afterwards it leaves the device whatever happens, and whoever still holds it. Raises OutOfMemory."""
        module = self._waiting.pop(name, None) or self._load(name)
        try:
            yield self._placed(module) if name == "encoder" else module.to(self.device)
        except Exception as error:
            if isinstance(error, OutOfMemory) or not _is_out_of_memory(error):
                raise
            device = self.encoder_device if name == "encoder" else self.device
            raise OutOfMemory(name, device, error, next(module.parameters()).dtype) from None
        finally:
            if name == "encoder" and _size(module) >= LARGE_BYTES:
                module.to("meta")
            else:
                self._waiting[name] = module.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _placed(self, encoder: nn.Module) -> nn.Module:
        """The text encoder on its device or, where it is too large for that, at work there from the CPU's memory."""
        size, device = _size(encoder), self.encoder_device
        if device.type == "cpu" or size < LARGE_BYTES or size + SPARE_BYTES <= (free := free_bytes(device)):
            return encoder.to(device)
        level = logging.DEBUG if self._warned_of_size else logging.WARNING
        self._warned_of_size = True
        log.log(
            level,
            f"the text encoder takes {size / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free: it stays in main "
            "memory, and each matrix is sent to the device when it is used",
        )
        return move_encoder(encoder, device)

    @contextmanager
    def network(self) -> Iterator[UniViGU]:
        """The network, on the device for the length of a block."""
        with self.using("network") as module:
            assert isinstance(module, UniViGU)
            yield module

    def on_network(self, job: Callable[[UniViGU], Result]) -> Result:
        """A job on the network. Where the card has nothing better than float16, a job whose first pass is not finite
        is done again in float32."""
        if self.float16_unasked:
            try:
                with self.network() as model, _first_pass_finite(model):
                    return job(model)
            except _NotFinite:
                pass
            log.warning(
                f"values are not finite in float16, the best precision that {self.device} has: using float32 from here"
            )
            self.dtype = torch.float32
            self._waiting.pop("network", None)
        with self.network() as model:
            return job(model)


@contextmanager
def _first_pass_finite(model: UniViGU) -> Iterator[None]:
    """Raise _NotFinite when the first pass that predicts something predicts what is not finite. It is the first alone
    because each look waits for the card."""

    def look(_: Any, __: Any, prediction: Any) -> None:
        parts = [part for part in prediction if part is not None]
        if parts:
            hook.remove()
        if not all(bool(part.isfinite().all()) for part in parts):
            raise _NotFinite

    hook = model.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _size(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.nbytes for p in module.parameters())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file."""
    try:
        yield
    except UniViGUError as error:
        raise UniViGUError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
