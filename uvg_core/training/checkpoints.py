"""Checkpoints of a run: whole or not at all, the newest N of them.

OUT/checkpoints/step_00000500/   weights, optimizer, moving average and random states (``state.py``), and run.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..data.encoders import weights_digest
from ..data.settings import Data
from ..data.sources import digest
from ..errors import UniViGUError
from ..io import flushed, flushed_folder, make_folder, read_text, write_text
from .config import TrainConfig, changed, sources_of
from .state import RunState

FOLDER = "checkpoints"
FACTS = "run.json"
RESULTS = ("model.safetensors", "lora.safetensors")


def prepare(out: Path) -> None:
    """Make the folder of a run, and clear away what a killed process left half-written in it.

    Raises UniViGUError when the system refuses."""
    make_folder(out / FOLDER, "choose another folder for out")
    for part in (out / FOLDER).glob(".step_*.part"):
        shutil.rmtree(part, ignore_errors=True)


def finished(out: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    folders = [path for path in (out / FOLDER).glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted((path for path in folders if (path / FACTS).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written at, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def newest(out: Path) -> Path | None:
    """The newest finished checkpoint of a run."""
    return next(reversed(finished(out)), None)


def read(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises UniViGUError for one that was tampered with."""
    try:
        facts: dict[str, Any] = json.loads(read_text(checkpoint / FACTS, exact=True))
        facts["config"] = dict(facts["config"])
        _ = int(facts["step"]), facts["data"], int(facts["global_batch"]), sources_of(facts["config"]["data"])
        return facts
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UniViGUError(
            f"{checkpoint / FACTS}: cannot be read ({error}); delete this checkpoint, and --resume continues from the "
            "one before"
        ) from None


def require_startable(
    config: TrainConfig,
    global_batch: int,
    resume: bool,
    data: Sequence[str] = (),
    accept: Callable[[str], object] | None = None,
) -> Path | None:
    """The checkpoint to go on from, None at the beginning. ``data``: its fingerprints, any of which may have been
    noted; none where they are not known yet. What the data and the starting file hold counts, not where they lie.
    ``accept`` is called with what has changed, and the run goes on all the same.

    Raises UniViGUError where another run is in the way, or going on would not be the same one. Asked once before any
    data are touched (a run that is refused must not have thrown away another one's cache), and again with them."""
    last = newest(config.out_folder)
    if last is None:
        for path in (config.out_folder / name for name in RESULTS):
            if os.path.lexists(path):
                raise UniViGUError(
                    f"{path}: already exists, but no checkpoint of the run that wrote it does; it was not changed. "
                    "Choose another out, or move the file away"
                )
        return None
    if not resume:
        raise UniViGUError(
            f"{config.out_folder}: already contains a run, at {last.name}; continue it with --resume, or choose "
            "another out"
        )
    differences = _differences(read(last), config, global_batch, data)
    listed = "\n  ".join(["", *differences])
    if differences and accept is None:
        raise UniViGUError(
            f"{last}: this run was started with other settings. Changed:{listed}\n"
            "Restore them, continue anyway with --accept-changes, or start a new run in another out"
        )
    if differences and accept is not None:
        accept(f"{last}: continuing with changed settings:{listed}")
    return last


def _differences(facts: dict[str, Any], config: TrainConfig, global_batch: int, data: Sequence[str]) -> list[str]:
    """What of a run would not be as its checkpoint says, in words."""
    found = changed(facts["config"], config.to_dict(), by_content=("data",))
    others = [line for line in found if not line.startswith(("model: ", "lora.start: "))]
    if others != found and facts.get("starts_from") == starts_from(config):
        found = others
    if data and facts["data"] not in data:
        hint = (
            " (earlier versions used the beginning of long clips: set windows: first to continue a run that began so)"
        )
        is_first = all(one.windows == "first" for one in config.sources)
        found.append(f"data: the clips, their texts or the encoders have changed{'' if is_first else hint}")
    earlier = sources_of(facts["config"]["data"])
    if any(one != now for one, now in zip_longest(map(_share, earlier), map(_share, config.sources))):
        found.append("data: the repeats or weights of its sources have changed")
    if facts["global_batch"] != global_batch:
        found.append(
            f"clips per step: {facts['global_batch']} -> {global_batch} (batch x accumulate x processes must stay the "
            "same)"
        )
    return found


def _share(source: Data) -> tuple[float, float | None]:
    return source.repeats, source.weight


def starts_from(config: TrainConfig) -> str:
    """A digest of the file that a run starts from, and of its LoRA."""
    model = weights_digest(Path(config.model))
    lora = config.lora.start if config.trains == "lora" else None
    return model if lora is None else digest([model, weights_digest(Path(lora))])


def load(checkpoint: Path, state: RunState) -> None:
    """Put the state of all processes back. Raises UniViGUError for a checkpoint that is damaged, or of another network
    or optimizer."""
    try:
        state.read(checkpoint)
    except (UniViGUError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise UniViGUError(
            f"{checkpoint}: cannot be read ({_reason(error)}): it is damaged, or belongs to another network or "
            "optimizer. Delete it, and --resume continues from the one before"
        ) from error
    state.accelerator.step = 0  # it counts batches; a checkpoint stands between two steps, however many those had


def write(out: Path, state: RunState, facts: dict[str, Any], keep: int) -> Path:
    """Write the state of all processes; returns the checkpoint's folder. The newest ``keep`` stay.

    Raises UniViGUError when the system refuses (full disk); earlier checkpoints stay as they are."""
    final = out / FOLDER / f"step_{facts['step']:08d}"
    part, earlier = (out / FOLDER / f".{final.name}.{end}" for end in ("part", "old.part"))
    accelerator = state.accelerator
    try:
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        accelerator.wait_for_everyone()
        state.write(part)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_text(part / FACTS, json.dumps(facts, indent=1))
            flushed(*(path for path in part.rglob("*") if path.is_file()))
            if final.exists():
                final.replace(earlier)
            part.replace(final)
            flushed_folder(final.parent)
            shutil.rmtree(earlier, ignore_errors=True)
            for old in finished(out)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()
    except Exception as error:  # a full disk shows up as SafetensorError or RuntimeError too
        shutil.rmtree(part, ignore_errors=True)
        before = newest(out)
        kept = f"the last good checkpoint is {before}" if before else "there is no earlier checkpoint"
        raise UniViGUError(
            f"{final}: could not be written ({_reason(error)}); nothing was left under that name, and {kept}. Free "
            "some space or lower keep.checkpoints, then continue with --resume"
        ) from error
    return final


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
