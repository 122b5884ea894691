"""What a checkpoint is: network sizes, flows, and the facts that running it needs.

The only home of 1536 / 30 / 12 / (1,2,2). Field names of ``ModelConfig`` follow the names ComfyUI uses for Wan, so
that the ``transformer`` section of a file's metadata can be merged into what ComfyUI detects from the keys.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import UniViGUError

TEXT_FLOWS = ("discrete", "embedding")
SOURCES = ("uniform", "mask")
LATENT_SPACES = ("normalised", "raw")


def _known_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in values.items() if key in names}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and flows of one network; the defaults are the released model (Wan2.1 T2V 1.3B plus a text stream).

    ``vocab_size`` counts real tokens; with the ``mask`` source the embedding has one row more, the mask token.
    ``text_flow``: ``discrete`` (mixture path over tokens, arXiv 2407.15595) or ``embedding`` (the Uni-ViGU paper's
    text: a Gaussian flow between noise and rows of the embedding matrix E).
    ``latent_space``: ``normalised`` (Wan's per-channel mean and std, as everywhere else in the field) or ``raw``
    (straight from the VAE, as the release script does).
    """

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    vocab_size: int = 256300
    text_flow: str = "discrete"
    source: str = "uniform"
    kappa_exponent: float = 1.0
    latent_space: str = "normalised"

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise UniViGUError(f"width {self.dim} does not split into {self.num_heads} heads of an even size")
        for name, allowed in (("text_flow", TEXT_FLOWS), ("source", SOURCES), ("latent_space", LATENT_SPACES)):
            if getattr(self, name) not in allowed:
                raise UniViGUError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if not self.kappa_exponent > 0:
            raise UniViGUError(f"kappa_exponent is {self.kappa_exponent}; expected a number above 0")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def token_rows(self) -> int:
        """Rows of the token embedding: the vocabulary, and the mask token where there is one."""
        return self.vocab_size + (self.source == "mask" and self.text_flow == "discrete")

    @property
    def mask_token(self) -> int:
        """Id of the mask token (the last row); only with the ``mask`` source."""
        if self.source != "mask":
            raise ValueError("this model's source is uniform: it has no mask token")
        return self.vocab_size

    @property
    def text_out_dim(self) -> int:
        """Width of the text head: logits over all rows, or a velocity in embedding space."""
        return self.dim if self.text_flow == "embedding" else self.token_rows


@dataclass(frozen=True)
class RunConfig:
    """What running a checkpoint needs beyond its network: sizes it was trained at, and its tokenizer's facts.

    The defaults are the released model's recipe. ``context_length`` rows of the prompt condition, ``text_length``
    tokens in the text stream, ``fps`` frames a second.
    """

    height: int = 480
    width: int = 832
    frames: int = 81
    fps: float = 16.0
    text_length: int = 256
    context_length: int = 512
    pad_token: int = 0
    eos_token: int = 1
    steps: int = 50
    text_steps: int = 50
    shift: float = 3.0
    guidance_scale: float = 5.0


@dataclass(frozen=True)
class CheckpointConfig:
    """The full configuration of a native file, as its metadata carries it; ``card`` is free text facts (recipe...)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    run: RunConfig = field(default_factory=RunConfig)
    card: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """``{"transformer": ..., "run": ..., "card": ...}``: the ``config`` entry of a file's metadata."""
        return json.dumps({"transformer": asdict(self.model), "run": asdict(self.run), "card": self.card})

    @classmethod
    def from_json(cls, text: str) -> CheckpointConfig:
        """Read what ``to_json`` wrote; unknown entries are left alone, so that newer files load.

        Raises UniViGUError when the text is not such a configuration."""
        try:
            data = json.loads(text)
            return cls(
                model=ModelConfig(**_known_fields(ModelConfig, data["transformer"])),
                run=RunConfig(**_known_fields(RunConfig, data.get("run", {}))),
                card=dict(data.get("card", {})),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UniViGUError(f"metadata entry 'config' is not a Uni-ViGU configuration ({error})") from None
