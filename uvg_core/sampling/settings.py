"""Settings of a run. None is what the checkpoint recommends (``RunConfig``); ``resolved`` puts it in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ..config import ModelConfig, RunConfig
from ..errors import UniViGUError
from ..settings import Flag, Number, OneOf, Text, Whole, setting, settings
from .cache_policy import CachePolicy

if TYPE_CHECKING:
    from ..media.video import ClipSpec
    from ..media.video.footage import Footage

SOLVERS = ("euler", "heun")
TEXT_UPDATES = ("bridge", "euler", "release")
RECOMMENDED = "what the checkpoint recommends"
TRAINED = "what the checkpoint was trained with"
RELEASED = RunConfig()
Seed = Annotated[Whole, Field(ge=0, le=2**63 - 1)]


@settings
class Sampling:
    """Settings of the three jobs; each job reads those that concern it. None is filled in by ``resolved`` from the
    checkpoint's ``RunConfig``; ``steps`` from its ``text_steps`` for captions."""

    steps: Whole | None = setting("Sampling steps.", default=None, auto=RECOMMENDED, ge=1, le=10_000)
    shift: Number | None = setting(
        "Above 1: more of the steps at high noise.", default=None, auto=RECOMMENDED, gt=0, le=1000
    )
    guidance_scale: Number | None = setting(
        "How strongly the clip follows the prompt; 1 turns guidance off.",
        default=None,
        auto=RECOMMENDED,
        flag="--guidance",
        ge=-1000,
        le=1000,
    )
    guidance_end: Number = setting(
        "The share of the steps that are guided; the others take half the time.",
        default=1.0,
        expected="a share of the steps, from 0 to 1",
        ge=0,
        le=1,
    )
    solver: Annotated[str, OneOf(*SOLVERS)] = setting(
        "euler, or heun: second order, two passes a step.", default="euler"
    )
    seed: Seed = setting("The same seed gives the same result.", default=0)
    temperature: Number | None = setting(
        "0 always takes the likeliest word.",
        default=None,
        auto=f"{RECOMMENDED} for captions, 1 in joint runs",
        ge=0,
        expected="0 (greedy) or more",
    )
    top_p: Number = setting(
        "Words are drawn from the smallest set with this probability.",
        default=1.0,
        gt=0,
        le=1,
    )
    text_update: Annotated[str, OneOf(*TEXT_UPDATES)] = setting(
        "bridge is exact at any number of steps; the others are rules of the release.", default="bridge"
    )
    text_length: Whole | None = setting(
        "Tokens of the text stream.", default=None, auto=TRAINED, flag="--length", ge=1, le=4096
    )
    video_cache: Text = setting(
        "How often steps look at the clip: off (each), refresh=K (every K-th), static (once); auto: once where that "
        "changes nothing, else each.",
        default="auto",
    )
    stop_when_stable: Whole = setting(
        "Stop as soon as this many steps in a row draw the same words; 0 takes every step.", default=0, ge=0, le=1000
    )
    stop_when_sure: Number | None = setting(
        "Stop as soon as every word has at least this probability; 0 takes every step.",
        default=None,
        auto=f"{RECOMMENDED} for captions where steps and temperature are left to it too, else 0",
        ge=0,
        le=1,
    )

    def __post_init__(self) -> None:
        CachePolicy.of(self.video_cache, ModelConfig())  # refuses what is no policy

    def resolved(self, run: RunConfig = RELEASED, *, captions: bool = False, joint: bool = False) -> Sampling:
        """The same settings with the recipe of ``run`` in the place of None; ``captions``: of a run without video,
        which has its own number of steps, temperature and early stop; ``joint``: of one that forms both. The early stop
        was measured with the other two: whoever chooses one of those does without it."""
        stops = captions and self.steps is None and self.temperature is None
        recipe: dict[str, Any] = {
            "steps": run.text_steps if captions else (joint and run.joint_steps) or run.steps,
            "shift": run.shift,
            "temperature": run.text_temperature if captions else 1.0,
            "stop_when_sure": run.stop_when_sure if stops else 0.0,
            "text_length": run.text_length,
            "guidance_scale": run.guidance_scale,
        }
        return replace(self, **{name: value for name, value in recipe.items() if getattr(self, name) is None})


_MANY_SHAPES = 256 * 256  # pixels of a frame


@settings
class Size:
    """Size of a clip; off the model's grid is for ``latent_shape`` to refuse."""

    height: Whole | None = setting("Pixels, a multiple of 16.", default=None, auto=TRAINED, ge=1, le=8192, grid=(16, 0))
    width: Whole | None = setting("Pixels, a multiple of 16.", default=None, auto=TRAINED, ge=1, le=8192, grid=(16, 0))
    frames: Whole | None = setting(
        "4n+1: 81 is 5 s at 16 fps.", default=None, auto=TRAINED, ge=1, le=100_000, grid=(4, 1)
    )

    def resolved(self, run: RunConfig) -> tuple[int, int, int]:
        """Frames, height and width in pixels, with those of ``run`` in the place of None."""
        return self.frames or run.frames, self.height or run.height, self.width or run.width

    def spec(self, run: RunConfig, footage: Footage) -> ClipSpec:
        """How clips are read for a checkpoint. Where the size is left to it, clips may keep their shape if it is large
        enough to come from Wan, which was trained on many; small ones make no sense of other shapes, nor of bars."""
        is_free = self.height is None and self.width is None
        many = run.height * run.width >= _MANY_SHAPES
        return replace(footage.spec(*self.resolved(run)), any_shape=is_free and many)


@settings
class Ranking:
    """Settings of ``caption_likelihood``."""

    samples: Whole = setting("Monte-Carlo draws: more are steadier and take longer.", default=16, ge=1, le=100_000)
    seed: Seed = setting("The same seed gives the same scores.", default=0)
    batch: Whole | None = setting("Candidates in one forward pass.", default=None, auto="what memory holds", ge=1)
    video_cache: Text = setting("How often the network looks at the clip.", default="auto")
    stop_when_sure: Number = setting(
        "A text is left out as soon as it is beaten with this confidence, 0.9 for example, and ranking ends when one "
        "is left; 0 takes every draw.",
        default=0.0,
        ge=0,
        le=1,
    )


@settings
class Judging:
    """Settings of ``clip_likelihood``."""

    samples: Whole = setting("Passes over every clip: more are steadier; one is enough.", default=1, ge=1, le=1000)
    seed: Seed = setting("The same seed gives the same scores.", default=0)


@settings
class BestOf:
    """Several draws of a clip, of which the one is kept that fits its words best (see ``clip_likelihood``)."""

    best_of: Whole = setting(
        "Draw this many clips, each with the next seed, and keep the one that the model finds to fit the words best.",
        default=1,
        ge=1,
        le=100,
    )
    keep_all: Flag = setting("Write the others too, under names of their own.", default=False)

    def __post_init__(self) -> None:
        if self.keep_all and self.best_of == 1:
            raise UniViGUError("--keep-all keeps all clips of --best-of N; pass that too, or leave out --keep-all")


@settings
class Editing:
    """Settings of ``edit`` beside those of ``Sampling``, whose guidance is that of the new words."""

    strength: Number = setting(
        "How freely the clip may change: 0 not at all, 0.5 hardly, 1 freely.", default=0.95, ge=0, le=1
    )
    source_guidance: Number = setting("Guidance of the old words; 1 turns it off.", default=1.0, ge=-1000, le=1000)
    draws: Whole = setting("Noise draws a step: more are steadier and take longer.", default=1, ge=1, le=1000)
    best_of: Whole = setting(
        "Make this many edits, each with the next seed, and keep the one that the model finds to fit the words best.",
        default=1,
        ge=1,
        le=100,
    )


SAMPLING, SIZE, RANKING, EDITING = Sampling(), Size(), Ranking(), Editing()
JUDGING = Judging()
FEW_DRAWS = Ranking(samples=8)
