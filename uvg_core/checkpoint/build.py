"""From a checkpoint to a network: assembled on the meta device, so that the only weights in memory are the model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import UniViGUError
from ..model import UniViGU
from ..model.attention import Attention
from .config import model_config
from .detect import Checkpoint, open_checkpoint
from .facts import Overrides
from .fit import compare, open_network, require_fit
from .keys import part_of
from .lora import Lora, LoraChoice, open_loras
from .quant import FP8_DTYPES
from .write import Progress

EMBEDDING_STD = 0.02
WAN_CHANNELS = 16


def load_model(
    path: str | Path | Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    overrides: Overrides | None = None,
    operations: Any = nn,
    attention: Attention | None = None,
    on_progress: Progress | None = None,
    loras: Sequence[str | Path | LoraChoice | Lora] = (),
) -> UniViGU:
    """Load a Uni-ViGU checkpoint for use: eval mode, no gradients.

    Args:
        path: native safetensors (bare, or in an all-in-one file), the release's ``.pth`` or its names in safetensors,
            fp8 files written by ``convert``, or a folder with one of these.
        device: where the weights go, one tensor at a time.
        dtype: of all weights; by default the one that most of them are stored in, bfloat16 for fp8 files.
        overrides: facts that the file does not state, or that take the place of what it states.
        operations, attention: see ``UniViGU``.
        on_progress: called with (bytes read, bytes in all) after each tensor.
        loras: LoRA files, each as ``FILE[:VIDEO[:TEXT]]`` or a ``LoraChoice``, merged into the weights as they are read
            (in float32), in this order.

    Peak memory on a CPU is the model itself plus about one tensor.

    Raises:
        UniViGUError: the file is missing, damaged, unsafe, something else than a Uni-ViGU, or incomplete; a LoRA does
            not fit (see ``Lora``).
    """
    checkpoint, config = open_network(path, overrides)
    merged = open_loras(loras, config.model)
    model = _empty(config.model, checkpoint, dtype, operations, attention)
    sizes = {name: checkpoint.stored(name).nbytes for name in checkpoint.names}
    done, total = 0, sum(sizes.values())

    def weight(name: str, empty: Tensor) -> Tensor:
        nonlocal done
        tensor = merged_weight(checkpoint, name, merged).to(device=device, dtype=empty.dtype)
        done += sizes[name]
        if on_progress is not None:
            on_progress(done, total)
        return tensor

    # Largest first: what a tensor costs in passing is then never on top of the finished model.
    _fill(model, weight, sorted(sizes, key=lambda name: sizes[name], reverse=True))
    return model.eval().requires_grad_(False)


def init_from_wan(
    path: str | Path | Checkpoint,
    *,
    vocab_size: int,
    overrides: Overrides | None = None,
    seed: int = 0,
    embedding_std: float = EMBEDDING_STD,
    dtype: torch.dtype | None = None,
    attention: Attention | None = None,
) -> UniViGU:
    """The starting point of training: a Wan2.1 text-to-video base with a text stream that has learnt nothing yet.

    ``ffn_t``, the text clock and the text head's table are copies of the video ones, the text head's linear is zero,
    the token embedding normal with ``embedding_std`` from ``seed``. Without text the network is the base, bit for bit.

    Args:
        path: the base in original or ComfyUI naming, or diffusers' (a file, its sharded folder, or the model's root).
        vocab_size: number of tokens of the tokenizer; the ``mask`` source adds a row of its own.
        overrides: the flow of the text (``discrete`` and ``uniform`` where nothing is given), and the number of heads
            for a base that is not 128 channels per head and has no config.json.
        dtype: of all weights; by default the one that most of them are stored in.

    Returns a trainable model. Raises UniViGUError when the file is not such a base (image-to-video and other variants
    are refused), is damaged or incomplete.
    """
    checkpoint = open_checkpoint(path)
    checkpoint.require(wan=True)
    if vocab_size < 1:
        raise UniViGUError(f"vocab_size is {vocab_size}; expected the tokenizer's number of tokens")
    config, _ = model_config(checkpoint, overrides or Overrides(), vocab_size)
    misfit = compare(checkpoint, config)
    if config.in_dim != WAN_CHANNELS or misfit.unexpected:
        found = f"{config.in_dim} input channels" if config.in_dim != WAN_CHANNELS else misfit.unexpected[0]
        raise checkpoint.error(
            f"found another Wan variant ({found}), expected the Wan2.1 text-to-video base with {WAN_CHANNELS} input "
            "channels: image-to-video, VACE, camera, audio and Wan2.2-5B models do not fit"
        )
    require_fit(checkpoint, misfit)
    checkpoint.weights.log_ignored()
    generator = torch.Generator().manual_seed(seed)
    model = _empty(config, checkpoint, dtype, nn, attention)

    def weight(name: str, empty: Tensor) -> Tensor:
        return untrained_weight(name, empty.shape, checkpoint.read, embedding_std, generator).to(empty.dtype)

    _fill(model, weight, dict(model.named_parameters()))
    return model


def untrained_weight(
    name: str, shape: torch.Size, video: Callable[[str], Tensor], embedding_std: float, generator: torch.Generator
) -> Tensor:
    """A weight of a network whose text half has learnt nothing; ``video`` gives those of the video half by name."""
    _, origin = part_of(name)
    if origin is not None:
        return video(origin)
    if name == "token_embedding.weight":
        return torch.empty(shape).normal_(std=embedding_std, generator=generator)
    return torch.ones(shape) if name == "text_head.norm.weight" else torch.zeros(shape)


def merged_weight(checkpoint: Checkpoint, name: str, loras: Sequence[Lora]) -> Tensor:
    """One weight by its native name, LoRAs merged into it (in float32)."""
    tensor = checkpoint.read(name)
    for lora in loras:
        tensor = lora.apply(name, tensor)
    return tensor


def _empty(
    config: ModelConfig, checkpoint: Checkpoint, dtype: torch.dtype | None, operations: Any, attention: Attention | None
) -> UniViGU:
    """The network on the meta device; by default in the dtype that most weights are stored in, where bfloat16 stands
    in for fp8, which is for storage only."""
    counts: Counter[torch.dtype | None] = Counter()
    for stored in map(checkpoint.stored, checkpoint.names):
        counts[torch.bfloat16 if stored.torch_dtype in FP8_DTYPES else stored.torch_dtype] += stored.numel
    dtype = dtype or counts.most_common(1)[0][0]
    return UniViGU(config, operations=operations, attention=attention, device="meta", dtype=dtype)


def _fill(model: UniViGU, weight: Callable[[str, Tensor], Tensor], names: Iterable[str]) -> None:
    """Put weights into a network on the meta device; ``weight(name, meta tensor)`` gives each, in this order."""
    empty = dict(model.named_parameters())
    model.load_state_dict({name: weight(name, empty[name]) for name in names}, strict=True, assign=True)


def with_weights(module: Any, weights: Mapping[str, Tensor], problem: str) -> Any:
    """A module built on the meta device, given all of its weights, for use only.

    Raises UniViGUError that begins with ``problem`` and names the first tensor that does not fit."""
    try:
        module.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]  # torch lists what does not fit under a headline
        raise UniViGUError(f"{problem}: {first[0].strip()[:200]}") from None
    return module.eval().requires_grad_(False)
