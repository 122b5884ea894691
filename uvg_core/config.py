"""What a checkpoint is: network sizes, flows, and the facts that running it needs.

The only home of 1536 / 30 / 12 / (1,2,2). Field names of ``ModelConfig`` follow the names ComfyUI uses for Wan, so
that the ``transformer`` section of a file's metadata can be merged into what ComfyUI detects from the keys.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .errors import UniViGUError

TEXT_FLOWS = ("discrete", "embedding")
SOURCES = ("uniform", "mask")
LATENT_SPACES = ("normalised", "raw")
V2T_ATTENTION = ("joint", "one_way")
TIME_ROUNDING = ("none", "bfloat16")
TEXT_STATES = ("umT5", "release")
END_OF_TEXT = ("stop", "skip")


# Far beyond every network of this kind. They keep sizes that a damaged file claims from being tried out.
_WIDEST = 1_000_000
_MOST_TOKENS = 10_000_000
_MOST_LAYERS = 1000
_LARGEST_PATCH = 64
# Clips lie on the VAE's grid: 8 pixels times patches of 2, one first frame and then four at a time.
_SIDE_STEP, _LONGEST_SIDE = 16, 8192
_FRAME_STEP, _MOST_FRAMES = 4, 1025
_LONGEST_NOTE = 1000  # characters
_HIGHEST_FREQUENCY = 1000  # radians per token; the formula's are at most 1


def shown(value: Any) -> str:
    """A value from a file as an error message shows it: never long, never an error of its own."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return "a value of thousands of digits"


def _known_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in values.items() if key in names}


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _require_whole(config: Any, low: int, high: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not _is_whole(value, low, high):
            raise UniViGUError(f"{name} is {shown(value)}; expected a whole number from {low} to {high}")


def _require_number(config: Any, name: str, low: float | None, high: float, expected: str) -> None:
    """``low`` itself is excluded, ``high`` included; None for no lower bound. NaN and infinities never pass."""
    value = getattr(config, name)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not (-sys.float_info.max <= value <= high) or (low is not None and not value > low):
        raise UniViGUError(f"{name} is {shown(value)}; expected {expected}")


def _require_choice(config: Any, name: str, *allowed: str) -> None:
    value = getattr(config, name)
    if value not in allowed:
        raise UniViGUError(f"{name} is {shown(value)}; expected one of {', '.join(filter(None, allowed))}")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and flows of one network; the defaults are the released model (Wan2.1 T2V 1.3B plus a text stream).

    ``vocab_size`` counts real tokens; with the ``mask`` source the embedding has one row more, the mask token.
    ``text_flow``: ``discrete`` (mixture path over tokens, arXiv 2407.15595) or ``embedding`` (the Uni-ViGU paper's
    text: a Gaussian flow between noise and rows of the embedding matrix E).
    ``latent_space``: ``normalised`` (Wan's per-channel mean and std, as everywhere else in the field) or ``raw``
    (straight from the VAE, as the release script does).
    ``v2t_attention``: ``joint`` (everybody sees everybody, as in the paper) or ``one_way``: a video at time 0, which is
    clean and only read, does not see the text, so that what it says of itself is the same at every step of a caption.
    ``text_inv_freq``: rotary frequencies of the text, head_dim / 2 of them in radians per token, for weights whose file
    stores others than the formula's; None for the formula's (see ``model/rope.py``).
    ``time_rounding``: ``none``, or ``bfloat16`` for weights that were trained on clocks of eight bits: the network then
    rounds both times (993.4 becomes 992), as the release's script does.

    A ``vocab_size`` of 0 is one that is not known (a Wan base has none). Raises UniViGUError, naming the entry, for
    values of another type or out of every reasonable range.
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
    v2t_attention: str = "joint"
    text_inv_freq: tuple[float, ...] | None = None
    time_rounding: str = "none"

    def __post_init__(self) -> None:
        patch = self.patch_size
        if (
            not isinstance(patch, (tuple, list))
            or len(patch) != 3
            or not all(_is_whole(n, 1, _LARGEST_PATCH) for n in patch)
        ):
            raise UniViGUError(
                f"patch_size is {shown(patch)}; expected three whole numbers from 1 to {_LARGEST_PATCH}: frames, rows "
                "and columns"
            )
        object.__setattr__(self, "patch_size", tuple(patch))
        _require_whole(self, 1, _WIDEST, "dim", "ffn_dim", "num_heads", "in_dim", "out_dim", "text_dim", "freq_dim")
        _require_whole(self, 1, _MOST_LAYERS, "num_layers")
        _require_whole(self, 0, _MOST_TOKENS, "vocab_size")
        if self.freq_dim % 2:
            raise UniViGUError(f"freq_dim is {self.freq_dim}; expected an even number: cosines and sines")
        _require_number(self, "eps", 0, 0.1, "a number above 0, at most 0.1")
        _require_number(self, "kappa_exponent", 0, sys.float_info.max, "a finite number above 0")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise UniViGUError(f"width {self.dim} does not split into {self.num_heads} heads of an even size")
        for name, allowed in (
            ("text_flow", TEXT_FLOWS),
            ("source", SOURCES),
            ("latent_space", LATENT_SPACES),
            ("v2t_attention", V2T_ATTENTION),
            ("time_rounding", TIME_ROUNDING),
        ):
            _require_choice(self, name, *allowed)
        if self.text_inv_freq is not None:
            object.__setattr__(self, "text_inv_freq", self._checked_frequencies(self.text_inv_freq))

    def _checked_frequencies(self, values: Any) -> tuple[float, ...]:
        count = self.head_dim // 2
        if (
            not isinstance(values, (tuple, list))
            or len(values) != count
            or not all(type(value) in (int, float) and 0 <= value <= _HIGHEST_FREQUENCY for value in values)
        ):
            raise UniViGUError(
                f"text_inv_freq is {shown(values)}; expected {count} numbers from 0 to {_HIGHEST_FREQUENCY}, a "
                "frequency for each pair of channels of a head"
            )
        return tuple(float(value) for value in values)

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
    tokens in the text stream, ``fps`` frames a second; ``text_temperature`` is that of captions, 0 for the likeliest
    words.

    Three entries are empty where a file does not state them. ``text_states``: how the text encoder is run, ``umT5`` or
    ``release`` (see ``TextEncoder``); empty means umT5. ``end_of_text``: generated text ends at the first end token
    (``stop``), or end tokens are left out and the words behind them are read (``skip``); empty means the better one for
    the source (see ``Tokenizer``). ``checked``: a line that says what ``check`` found, at most 1000 characters; empty
    where a file has never been checked.

    Raises UniViGUError, naming the entry, for values of another type or out of range.
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
    text_temperature: float = 1.0
    text_states: str = ""
    end_of_text: str = ""
    checked: str = ""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if not _is_whole(value, _SIDE_STEP, _LONGEST_SIDE) or value % _SIDE_STEP:
                raise UniViGUError(
                    f"{name} is {shown(value)}; expected a multiple of {_SIDE_STEP} from {_SIDE_STEP} to "
                    f"{_LONGEST_SIDE} pixels"
                )
        if not _is_whole(self.frames, 1, _MOST_FRAMES) or self.frames % _FRAME_STEP != 1:
            raise UniViGUError(
                f"frames is {shown(self.frames)}; expected 1 to {_MOST_FRAMES} frames, one more than a multiple of "
                f"{_FRAME_STEP} (5, 9, 13 ... 81)"
            )
        _require_number(self, "fps", 0, 240, "a number of frames per second above 0, at most 240")
        _require_whole(self, 1, 4096, "text_length")
        _require_whole(self, 1, 8192, "context_length")
        _require_whole(self, 1, 10_000, "steps", "text_steps")
        _require_whole(self, 0, _MOST_TOKENS - 1, "pad_token", "eos_token")
        _require_number(self, "shift", 0, sys.float_info.max, "a finite number above 0")
        _require_number(self, "guidance_scale", None, sys.float_info.max, "a finite number")
        _require_number(self, "text_temperature", -math.ulp(0.0), 100, "a number from 0 to 100")
        _require_choice(self, "text_states", "", *TEXT_STATES)
        _require_choice(self, "end_of_text", "", *END_OF_TEXT)
        if not isinstance(self.checked, str) or len(self.checked) > _LONGEST_NOTE:
            raise UniViGUError(
                f"checked is {shown(self.checked)}; expected a line of text of at most {_LONGEST_NOTE} characters"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """The full configuration of a native file, as its metadata carries it; ``card`` is free text facts (recipe...).

    Raises UniViGUError when the tokens that ``run`` names are not in the vocabulary of ``model``.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    run: RunConfig = field(default_factory=RunConfig)
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model.text_flow == "embedding" and self.run.text_temperature != 1:  # it has none
            object.__setattr__(self, "run", replace(self.run, text_temperature=1.0))
        if self.model.vocab_size:
            _require_whole(self.run, 0, self.model.vocab_size - 1, "pad_token", "eos_token")

    def to_json(self) -> str:
        """``{"transformer": ..., "run": ..., "card": ...}``: the ``config`` entry of a file's metadata.

        ``run`` stands in ``transformer`` too: that section is what ComfyUI's own loaders pass on."""
        run = asdict(self.run)
        return json.dumps({"transformer": {**asdict(self.model), "run": run}, "run": run, "card": self.card})

    @classmethod
    def from_json(cls, text: str) -> CheckpointConfig:
        """Read what ``to_json`` wrote; unknown entries are left alone, so that newer files load.

        Raises UniViGUError when the text is not such a configuration. It does not know the file: callers name it."""
        try:
            data = json.loads(text)
            return cls(
                model=ModelConfig(**_known_fields(ModelConfig, data["transformer"])),
                run=RunConfig(**_known_fields(RunConfig, data.get("run", {}))),
                card=dict(data.get("card", {})),
            )
        except UniViGUError as error:
            raise UniViGUError(f"metadata entry 'config': {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UniViGUError(f"metadata entry 'config' is not a Uni-ViGU configuration ({error})") from None
