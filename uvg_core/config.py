"""What a checkpoint is: network sizes, flows, and the facts that running it needs.

The only home of 1536 / 30 / 12 / (1,2,2). Field names of ``ModelConfig`` follow the names ComfyUI uses for Wan, so
that the ``transformer`` section of a file's metadata can be merged into what ComfyUI detects from the keys.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import Field

from .errors import UniViGUError
from .settings import Number, OneOf, Text, Whole, fields_of, setting, settings, shown

TEXT_FLOWS, SOURCES = ("discrete", "embedding"), ("uniform", "mask")
LATENT_SPACES, V2T_ATTENTION = ("normalised", "raw"), ("joint", "one_way")
TIME_ROUNDING, TEXT_STATES, END_OF_TEXT = ("none", "bfloat16"), ("umT5", "release"), ("stop", "skip")
HELD_PARTS = ("noised", "clean")

# Far beyond every network of this kind. They keep sizes that a damaged file claims from being tried out.
_Size = Annotated[Whole, Field(ge=1, le=1_000_000)]
_TOKENS = 10_000_000
# Clips lie on the VAE's grid: 8 pixels times patches of 2, one first frame and then four at a time.
_Side = Annotated[Whole, Field(ge=16, le=8192, multiple_of=16)]
_SIDES = "a multiple of 16 from 16 to 8192 pixels"
_Patch = Annotated[Whole, Field(ge=1, le=64)]
_Frequency = Annotated[Number, Field(ge=0, le=1000)]


@settings
class ModelConfig:
    """Sizes and flows of one network; the defaults are the released model (Wan2.1 T2V 1.3B plus a text stream).

    ``text_flow``: ``discrete`` (mixture path over tokens, arXiv 2407.15595) or ``embedding`` (the Uni-ViGU paper's
    text: a Gaussian flow between noise and rows of the embedding matrix E).
    ``latent_space``: ``normalised`` (Wan's per-channel mean and std, as everywhere else in the field) or ``raw``
    (straight from the VAE, as the release script does).
    ``v2t_attention``: ``joint`` (everybody sees everybody, as in the paper) or ``one_way``: a video that is held clean
    does not see the text, so that its keys and values are the same at every step of a caption.
    ``text_inv_freq``: rotary frequencies of the text, head_dim / 2 of them in radians per token, for weights whose file
    stores others than the formula's; None for the formula's (see ``model/rope.py``).
    ``time_rounding``: ``none``, or ``bfloat16`` for weights that were trained on clocks of eight bits: the network then
    rounds both times (993.4 becomes 992), as the release's script does.
    ``held_parts``: what a network sees in the parts of a clip that a run holds: ``noised`` as the rest is, which needs
    no training, or ``clean``, for weights that were trained with ``hold_share``.

    A ``vocab_size`` of 0 is unknown (a Wan base has no vocabulary). Raises UniViGUError, naming the entry, for values
    of another type or out of range.
    """

    dim: _Size = setting("Width.", default=1536)
    ffn_dim: _Size = setting("Width of the feed-forward layers.", default=8960)
    num_heads: _Size = setting("Attention heads.", default=12)
    num_layers: Whole = setting("Blocks.", default=30, ge=1, le=1000)
    in_dim: _Size = setting("Latent channels in.", default=16)
    out_dim: _Size = setting("Latent channels out.", default=16)
    text_dim: _Size = setting("Width of the prompt condition.", default=4096)
    freq_dim: _Size = setting(
        "Features of a time.", default=256, multiple_of=2, expected="an even whole number from 2 to 1000000"
    )
    patch_size: tuple[_Patch, _Patch, _Patch] = setting(
        "Patch.", default=(1, 2, 2), expected="three whole numbers from 1 to 64: frames, rows and columns"
    )
    eps: Number = setting("Of the norms.", default=1e-6, gt=0, le=0.1)
    vocab_size: Whole = setting(
        "Tokens; with the mask source E has one row more, the mask.", default=256300, ge=0, le=_TOKENS
    )
    text_flow: Annotated[str, OneOf(*TEXT_FLOWS)] = setting("How text forms.", default="discrete")
    source: Annotated[str, OneOf(*SOURCES)] = setting("What noise is to the discrete text flow.", default="uniform")
    kappa_exponent: Number = setting("Of the mixture path.", default=1.0, gt=0, expected="a finite number above 0")
    latent_space: Annotated[str, OneOf(*LATENT_SPACES)] = setting(
        "What the network's latents are.", default="normalised"
    )
    v2t_attention: Annotated[str, OneOf(*V2T_ATTENTION)] = setting(
        "Whether a clean video sees the text.", default="joint"
    )
    text_inv_freq: tuple[_Frequency, ...] | None = setting("Rotary frequencies of the text.", default=None)
    time_rounding: Annotated[str, OneOf(*TIME_ROUNDING)] = setting("How the network rounds its times.", default="none")
    held_parts: Annotated[str, OneOf(*HELD_PARTS)] = setting("How it sees held parts of a clip.", default="noised")

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise UniViGUError(
                f"dim is {self.dim}; expected a width that splits into {self.num_heads} heads of an even size"
            )
        if self.text_inv_freq is not None and len(self.text_inv_freq) != self.head_dim // 2:
            raise UniViGUError(
                f"text_inv_freq is {shown(list(self.text_inv_freq))}; expected {self.head_dim // 2} numbers from 0 to "
                "1000, a frequency for each pair of channels of a head"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads

    @property
    def token_rows(self) -> int:
        """Rows of the token embedding: the vocabulary, and the mask token where there is one."""
        return self.vocab_size + (self.source == "mask" and self.text_flow == "discrete")

    @property
    def mask_token(self) -> int:
        """Id of the mask token (the last row). Raises ValueError for the uniform source, which has none."""
        if self.source != "mask":
            raise ValueError("this model's source is uniform: it has no mask token")
        return self.vocab_size

    @property
    def text_out_dim(self) -> int:
        """Width of the text head: logits over all rows, or a velocity in embedding space."""
        return self.dim if self.text_flow == "embedding" else self.token_rows


@settings
class RunConfig:
    """What running a checkpoint needs beyond its network: sizes it was trained at, and its tokenizer's facts.

    The defaults are the released model's recipe. Three entries are empty where a file does not state them.
    ``text_states``: how the text encoder is run, ``umT5`` or ``release`` (see ``TextEncoder``); empty means umT5.
    ``end_of_text``: generated text ends at the first end token (``stop``), or end tokens are left out and the words
    behind them are read (``skip``); empty means stop (see ``Tokenizer``). ``checked``: a line that says what ``check``
    found; empty where a file has never been checked.

    Raises UniViGUError, naming the entry, for values of another type or out of range.
    """

    height: _Side = setting("Pixels.", expected=_SIDES, default=480)
    width: _Side = setting("Pixels.", expected=_SIDES, default=832)
    frames: Whole = setting("Frames of a clip.", default=81, ge=1, le=1025)
    fps: Number = setting(
        "Frames a second.", default=16.0, gt=0, le=240, expected="a number of frames per second above 0, at most 240"
    )
    text_length: Whole = setting("Tokens of the text stream.", default=256, ge=1, le=4096)
    context_length: Whole = setting("Rows of the prompt condition.", default=512, ge=1, le=8192)
    pad_token: Whole = setting("Id of the padding.", default=0, ge=0, lt=_TOKENS)
    eos_token: Whole = setting("Id of the end-of-text token.", default=1, ge=0, lt=_TOKENS)
    steps: Whole = setting("Steps of a run that forms video.", default=50, ge=1, le=10_000)
    text_steps: Whole = setting("Steps of a caption.", default=50, ge=1, le=10_000)
    shift: Number = setting("Of the sigmas.", default=3.0, gt=0, expected="a finite number above 0")
    guidance_scale: Number = setting("Classifier-free guidance.", default=5.0, expected="a finite number")
    text_temperature: Number = setting("Of captions; 0 takes the likeliest words.", default=1.0, ge=0, le=100)
    text_states: Annotated[str, OneOf("", *TEXT_STATES)] = setting("How the text encoder is run.", default="")
    end_of_text: Annotated[str, OneOf("", *END_OF_TEXT)] = setting("How generated text ends.", default="")
    checked: Text = setting(
        "What check found.", default="", max_length=1000, expected="a line of text of at most 1000 characters"
    )
    joint_steps: Whole = setting("Steps of a joint run; 0: as many as any run.", default=0, ge=0, le=10_000)
    stop_when_sure: Number = setting(
        "A caption ends as soon as every word has at least this probability; 0 takes every step.",
        default=0.0,
        ge=0,
        le=1,
    )

    def __post_init__(self) -> None:
        if self.frames % 4 != 1:
            raise UniViGUError(
                f"frames is {self.frames}; expected 1 to 1025 frames, one more than a multiple of 4 (5, 9, 13 ... 81)"
            )

    def distilled(self, passes: int, joint_passes: int) -> RunConfig:
        """The recipe of a student of this model: few passes, and no guidance."""
        return replace(self, steps=passes, joint_steps=joint_passes, guidance_scale=1.0)


@settings
class CheckpointConfig:
    """The full configuration of a native file, as its metadata carries it; ``card`` is free text facts (recipe...).

    Raises UniViGUError when the tokens that ``run`` names are not in the vocabulary of ``model``.
    """

    model: ModelConfig = setting(factory=ModelConfig)
    run: RunConfig = setting(factory=RunConfig)
    card: dict[str, Any] = setting(factory=dict)

    def __post_init__(self) -> None:
        if self.model.text_flow == "embedding":  # which has no probabilities of words
            object.__setattr__(self, "run", replace(self.run, text_temperature=1.0, stop_when_sure=0.0))
        for name in ("pad_token", "eos_token") if self.model.vocab_size else ():
            if getattr(self.run, name) >= self.model.vocab_size:
                raise UniViGUError(
                    f"{name} is {getattr(self.run, name)}; expected a whole number from 0 to "
                    f"{self.model.vocab_size - 1}"
                )

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
                model=ModelConfig(**_known(ModelConfig, data["transformer"])),
                run=RunConfig(**_known(RunConfig, data.get("run", {}))),
                card=dict(data.get("card", {})),
            )
        except UniViGUError as error:
            raise UniViGUError(f"metadata entry 'config': {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UniViGUError(f"metadata entry 'config' is not a Uni-ViGU configuration ({error})") from None


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in fields_of(cls)}
