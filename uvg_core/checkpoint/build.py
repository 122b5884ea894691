"""From a checkpoint to a network: assembled on the meta device, so that the only weights in memory are the model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import UniViGUError
from ..model import UniViGU
from ..model.attention import Attention
from .config import log_frequencies, model_config
from .detect import UNI_VIGU_LAYOUTS, WAN_LAYOUTS, Network, find_network, require_layout
from .fit import compare, require_fit, video_counterpart, without_text_half
from .lora import Lora, LoraChoice, open_loras
from .quant import FP8_DTYPES, dequantise
from .read import WeightFile, open_weights
from .write import Progress

EMBEDDING_STD = 0.02
WAN_CHANNELS = 16


def load_model(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    text_flow: str | None = None,
    source: str | None = None,
    latent_space: str | None = None,
    num_heads: int | None = None,
    time_rounding: str | None = None,
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
        text_flow, source, latent_space, num_heads, time_rounding: for files that do not state them. Contradicting the
            file is an error, except for ``latent_space`` and ``time_rounding``, where the argument wins.
        operations, attention: see ``UniViGU``.
        on_progress: called with (bytes read, bytes in all) after each tensor.
        loras: LoRA files, each as ``FILE[:VIDEO[:TEXT]]`` or a ``LoraChoice``, merged into the weights as they are read
            (in float32), in this order.

    Peak memory on a CPU is the model itself plus about one tensor.

    Raises:
        UniViGUError: the file is missing, damaged, unsafe, something else than a Uni-ViGU, or incomplete; a LoRA does
            not fit (see ``Lora``).
    """
    weights = open_weights(path)
    network = find_network(weights)
    require_layout(weights, network, UNI_VIGU_LAYOUTS)
    config, _ = model_config(
        weights,
        network,
        text_flow=text_flow,
        source=source,
        latent_space=latent_space,
        num_heads=num_heads,
        time_rounding=time_rounding,
    )
    require_fit(weights, network, compare(weights, network, config))
    weights.log_ignored()
    log_frequencies(weights, network, config)
    dtype = dtype or usual_dtype(weights, network)
    merged = open_loras(loras, config)

    sizes = {name: weights.tensors[stored].nbytes for name, stored in network.names.items()}
    done, total = 0, sum(sizes.values())

    def weight(name: str, empty: Tensor) -> Tensor:
        nonlocal done
        tensor = read_native(weights, network, name, merged).to(device=device, dtype=empty.dtype)
        done += sizes[name]
        if on_progress is not None:
            on_progress(done, total)
        return tensor

    # Largest first: what a tensor costs in passing is then never on top of the finished model.
    order = sorted(network.names, key=lambda name: sizes[name], reverse=True)
    return _assemble(config, weight, order, dtype, operations, attention).eval().requires_grad_(False)


def init_from_wan(
    path: str | Path,
    *,
    vocab_size: int,
    text_flow: str = "discrete",
    source: str = "uniform",
    seed: int = 0,
    embedding_std: float = EMBEDDING_STD,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    num_heads: int | None = None,
    operations: Any = nn,
    attention: Attention | None = None,
) -> UniViGU:
    """The starting point of training: a Wan2.1 text-to-video base with a text stream that has learnt nothing yet.

    ``ffn_t``, the text clock and the text head's table are copies of the video ones, the text head's linear is zero,
    the token embedding normal with ``embedding_std`` from ``seed``. Without text the network is the base, bit for bit.

    Args:
        path: the base in original or ComfyUI naming, or diffusers' (a file, its sharded folder, or the model's root).
        vocab_size: number of tokens of the tokenizer; the ``mask`` source adds a row of its own.
        dtype: of all weights; by default the one that most of them are stored in.
        num_heads: for a base that is not 128 channels per head and has no config.json.

    Returns a trainable model. Raises UniViGUError when the file is not such a base (image-to-video and other variants
    are refused), is damaged or incomplete.
    """
    weights = open_weights(path)
    network = find_network(weights)
    require_layout(weights, network, WAN_LAYOUTS)
    if vocab_size < 1:
        raise UniViGUError(f"vocab_size is {vocab_size}; expected the tokenizer's number of tokens")
    config, _ = model_config(
        weights, network, text_flow=text_flow, source=source, num_heads=num_heads, vocab_size=vocab_size
    )
    misfit = without_text_half(compare(weights, network, config))
    if config.in_dim != WAN_CHANNELS or misfit.unexpected:
        found = f"{config.in_dim} input channels" if config.in_dim != WAN_CHANNELS else misfit.unexpected[0]
        raise UniViGUError(
            f"{weights.path}: found another Wan variant ({found}), expected the Wan2.1 text-to-video base with "
            f"{WAN_CHANNELS} input channels: image-to-video, VACE, camera, audio and Wan2.2-5B models do not fit"
        )
    require_fit(weights, network, misfit)
    weights.log_ignored()
    dtype = dtype or usual_dtype(weights, network)
    generator = torch.Generator().manual_seed(seed)

    def weight(name: str, like: Tensor) -> Tensor:
        origin = video_counterpart(name)
        if origin is not None:
            value = read_native(weights, network, origin)
        elif name == "token_embedding.weight":
            value = torch.empty(like.shape).normal_(std=embedding_std, generator=generator)
        else:
            value = torch.ones(like.shape) if name == "text_head.norm.weight" else torch.zeros(like.shape)
        return value.to(device=device, dtype=like.dtype)

    return _assemble(config, weight, None, dtype, operations, attention)


def read_native(weights: WeightFile, network: Network, name: str, loras: Sequence[Lora] = ()) -> Tensor:
    """One weight by its native name, values restored where it is stored with a scale, LoRAs merged into it (float32
    after either)."""
    tensor = weights.read(network.names[name])
    scale = network.scales.get(name)
    tensor = tensor if scale is None else dequantise(tensor, weights.read(scale))
    for lora in loras:
        tensor = lora.apply(name, tensor)
    return tensor


def usual_dtype(weights: WeightFile, network: Network) -> torch.dtype:
    """The dtype that most weights are stored in; bfloat16 stands in for fp8, which is for storage only."""
    counts: dict[torch.dtype, int] = {}
    for stored in (weights.tensors[name] for name in network.names.values()):
        dtype = stored.torch_dtype
        if dtype is not None:
            dtype = torch.bfloat16 if dtype in FP8_DTYPES else dtype
            counts[dtype] = counts.get(dtype, 0) + stored.numel
    return max(counts, key=lambda dtype: counts[dtype])


def _assemble(
    config: ModelConfig,
    weight: Callable[[str, Tensor], Tensor],
    order: list[str] | None,
    dtype: torch.dtype,
    operations: Any,
    attention: Attention | None,
) -> UniViGU:
    """Build on the meta device and put weights in; ``weight(name, meta tensor)`` gives each, in ``order``."""
    model = UniViGU(config, operations=operations, attention=attention, device="meta", dtype=dtype)
    empty = dict(model.named_parameters())
    state = {name: weight(name, empty[name]) for name in order or empty}
    model.load_state_dict(state, strict=True, assign=True)
    return model


def with_weights(module: Any, weights: Mapping[str, Tensor], problem: str) -> Any:
    """A module built on the meta device, given all of its weights, for use only.

    Raises UniViGUError that begins with ``problem`` and names the first tensor that does not fit."""
    try:
        module.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]  # torch lists what does not fit under a headline
        raise UniViGUError(f"{problem}: {first[0].strip()[:200]}") from None
    return module.eval().requires_grad_(False)
