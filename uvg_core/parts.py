"""The parts of a run - tokenizer, text encoder, network, VAE - and where they are at any moment.

They come from one all-in-one file, or from a checkpoint and a Wan2.1 diffusers folder. A part is loaded when it is
first used, moves to the device for as long as it works, and leaves; two of them are never there together. Network and
VAE wait in memory for their next turn, a large text encoder is let go: it is used once and is the largest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .checkpoint import load_model, read_config
from .checkpoint.keys import ENCODER_PREFIX, TOKENIZER_KEY, VAE_PREFIX
from .checkpoint.lora import Lora, LoraChoice, open_loras
from .checkpoint.read import WeightFile, open_weights
from .codec.latents import channels_last, load_vae
from .codec.text import Tokenizer, load_encoder
from .config import CheckpointConfig
from .errors import UniViGUError
from .model import UniViGU
from .progress import Report

WAN_FOLDERS = ("vae", "text_encoder", "tokenizer")
PACKAGES = ("diffusers", "transformers", "sentencepiece")
LARGE_BYTES = 2**30

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


class Parts:
    """Loads the parts of a checkpoint and keeps them off the device when they do not work.

    Args as for ``Pipeline``. Raises UniViGUError at once, before any work, for a checkpoint, a Wan folder, a device or
    packages that cannot do the job.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        wan: str | Path | None,
        device: str | torch.device | None,
        dtype: torch.dtype | None,
        text_states: str,
        overrides: Mapping[str, Any],
        progress: Report | None,
        config: CheckpointConfig | None = None,
        loras: Sequence[str | Path | LoraChoice | Lora] = (),
    ) -> None:
        self.path, self.wan = Path(model), None if wan is None else Path(wan)
        self.device, self.dtype, self.text_states = usable_device(device), dtype, text_states
        self.overrides, self.progress = dict(overrides), progress
        # A Wan base, from which training starts, does not say how long its texts will be: then the caller does.
        self.config: CheckpointConfig = config or read_config(self.path, **self.overrides)
        self.loras = open_loras(loras, self.config.model)
        self._waiting: dict[str, nn.Module] = {}
        self._require_all()
        self.tokenizer = self._load_tokenizer()

    def _require_all(self) -> None:
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            raise UniViGUError(
                f"packages {', '.join(missing)} are not installed: "
                "pip install -e '.[standalone]' in the project's folder"
            )
        if self.wan is not None:
            absent = [name for name in WAN_FOLDERS if not (self.wan / name).is_dir()]
            if absent:
                raise UniViGUError(
                    f"{self.wan}: not a Wan2.1 folder in diffusers layout: {', '.join(absent)} not found in it; "
                    "expected the folders vae, text_encoder and tokenizer, as in Wan2.1-T2V-1.3B-Diffusers"
                )
            for name in ("vae", "text_encoder"):
                open_weights(self.wan / name)
            return
        names = open_weights(self.path).tensors
        for prefix, part in ((VAE_PREFIX, "VAE"), (ENCODER_PREFIX, "text encoder"), (TOKENIZER_KEY, "tokenizer")):
            if not any(name.startswith(prefix) for name in names):
                raise UniViGUError(
                    f"{self.path}: this checkpoint does not carry a {part}; pass --wan DIR, a Wan2.1 folder in "
                    "diffusers layout (vae/, text_encoder/, tokenizer/)"
                )

    def _load_tokenizer(self) -> Tokenizer:
        if self.wan is not None:
            return Tokenizer.from_file(self.wan / "tokenizer" / "spiece.model", self.config.run)
        return Tokenizer(open_weights(self.path).read(TOKENIZER_KEY).numpy().tobytes(), self.config.run)

    def _load(self, part: str) -> nn.Module:
        if part == "network":
            small = self.path.is_file() and self.path.stat().st_size < LARGE_BYTES
            dtype = self.dtype or (torch.float32 if self.device.type == "cpu" and small else None)
            report = self._reporting("network")
            return load_model(self.path, dtype=dtype, on_progress=report, loras=self.loras, **self.overrides)
        if part == "vae":
            vae = self._from(VAE_PREFIX, "vae", "VAE", load_vae)
            return channels_last(vae) if self.device.type == "cpu" else vae
        return self._from(
            ENCODER_PREFIX, "text_encoder", "text encoder", lambda weights: load_encoder(weights, self.text_states)
        )

    def _from(self, prefix: str, folder: str, part: str, build: Callable[[dict[str, Tensor]], Any]) -> nn.Module:
        """A part from the checkpoint's own tensors or from its folder; messages name the file."""
        if self.wan is not None:
            prefix, path = "", self.wan / folder
        else:
            path = self.path
        file = open_weights(path)
        names = [name for name in file.tensors if name.startswith(prefix)]
        total = sum(file.tensors[name].nbytes for name in names)
        report, done, weights = self._reporting(part), 0, {}
        for name in names:
            weights[name.removeprefix(prefix)] = self._comfortable(file, name, total)
            done += file.tensors[name].nbytes
            if report is not None:
                report(done, total)
        try:
            return build(weights)
        except UniViGUError as error:
            raise UniViGUError(f"{path}: {error}") from None

    def _comfortable(self, file: WeightFile, name: str, total: int) -> Tensor:
        """A tensor in the dtype it works best in: small parts in float32 on the CPU; large ones never in float32 (Wan's
        text encoder is stored so, 23 GB of it)."""
        tensor = file.read(name)
        if not tensor.is_floating_point():
            return tensor
        if total < LARGE_BYTES:
            return tensor.float() if self.device.type == "cpu" else tensor
        return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor

    def _reporting(self, part: str) -> Callable[[int, int], object] | None:
        report = self.progress
        return None if report is None else lambda done, total: report(f"loading the {part}", done, total)

    @contextmanager
    def using(self, part: str) -> Iterator[nn.Module]:
        """``network``, ``encoder`` or ``vae`` on the device for the length of a block.

        Afterwards it leaves the device whatever happens, and whoever still holds it."""
        module = self._waiting.pop(part, None) or self._load(part)
        try:
            yield module.to(self.device)
        finally:
            if part == "encoder" and bytes_of(module) >= LARGE_BYTES:
                module.to("meta")
            else:
                self._waiting[part] = module.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def network(self) -> Iterator[UniViGU]:
        """The network, on the device for the length of a block."""
        with self.using("network") as module:
            assert isinstance(module, UniViGU)
            yield module


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())
