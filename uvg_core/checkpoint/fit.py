"""Strictness: a file's names and shapes held against the network they should fill, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..errors import UniViGUError
from ..model import UniViGU, sdpa_attention
from .detect import Network
from .read import WeightFile


@dataclass(frozen=True)
class Misfit:
    """How a file's weights differ from the network they should fill; native names."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, found, expected

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The weights of the network that ``config`` describes: native names and shapes."""
    model = UniViGU(config, attention=sdpa_attention, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def compare(weights: WeightFile, network: Network, config: ModelConfig) -> Misfit:
    """Hold a file's names and shapes against the network that ``config`` describes."""
    expected = shapes_of(config)
    found = {name: weights.tensors[stored].shape for name, stored in network.names.items()}
    return Misfit(
        tuple(name for name in expected if name not in found),
        tuple(name for name in found if name not in expected),
        tuple((n, found[n], shape) for n, shape in expected.items() if n in found and found[n] != shape),
    )


def require_fit(weights: WeightFile, network: Network, misfit: Misfit) -> None:
    """Raise UniViGUError with the file and the first key of each kind that does not fit."""
    if not misfit:
        return
    parts = []
    if misfit.missing:
        parts.append(f"{len(misfit.missing)} missing (first: {misfit.missing[0]})")
    if misfit.unexpected:
        first = network.names[misfit.unexpected[0]]
        parts.append(f"{len(misfit.unexpected)} unexpected (first: {first})")
    if misfit.misshapen:
        name, found, expected = misfit.misshapen[0]
        parts.append(
            f"{len(misfit.misshapen)} of another shape (first: {name}, found {list(found)}, expected {list(expected)})"
        )
    raise UniViGUError(
        f"{weights.path}: the weights ({network.layout} layout) do not make up a whole network: {', '.join(parts)}. "
        "The file is damaged, incomplete or of another model: download or export it again"
    )


def without_text_half(misfit: Misfit) -> Misfit:
    """The misfit of a Wan base, which has no text half and is not expected to."""
    missing = tuple(name for name in misfit.missing if video_counterpart(name) == name)
    return Misfit(missing, misfit.unexpected, misfit.misshapen)


def video_counterpart(name: str) -> str | None:
    """The Wan weight that a weight of a fresh Uni-ViGU starts from: itself in the video half, the video stream's own
    for the copies, None for what a Wan base has no equal of."""
    if name == "token_embedding.weight" or name.startswith(("text_head.head.", "text_head.norm.")):
        return None
    for text, video in (
        (".ffn_t.", ".ffn."),
        ("time_embedding_t.", "time_embedding."),
        ("time_projection_t.", "time_projection."),
        ("text_head.modulation", "head.modulation"),
    ):
        name = name.replace(text, video)
    return name


def is_text_half(name: str) -> bool:
    """Whether a weight belongs to the text stream alone; without text the network never reads it."""
    return video_counterpart(name) != name
