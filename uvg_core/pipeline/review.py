"""Captions that wait for somebody to read them, and what becomes of them.

``captions.review.jsonl`` lies in the folder of the clips; lines are only ever appended. ``{"clip": NAME, "new": TEXT,
...}`` proposes a caption, ``{"clip": NAME, "decision": "accepted"}`` says what became of it, ``{"clip": NAME, "failed":
WHY}`` that it could not be made again, and the last line of a clip holds. A caption is written as the run said that
proposed it; a run with another format proposes another one in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..confined import is_open
from ..errors import UniViGUError
from ..io import MEGABYTE, WINDOWS
from ..lines import Lines
from ..media.video import find_clips
from ..settings import shown
from .texts import Extended, texts_of
from .wording import Captions

RECORD = "captions.review.jsonl"
OPEN, ACCEPTED, SKIPPED, CONFLICT, FAILED = "open", "accepted", "skipped", "conflict", "failed"
LONGEST = 100_000  # characters of a caption
_MOST_BYTES = 2**28
_DECISIONS = (ACCEPTED, SKIPPED, OPEN)
_WRITTEN_AS = ("format", "file_suffix", "backup")  # of ``Captions``

_deciding = threading.Lock()  # two reviewers on one server


@dataclass
class Proposal:
    """A caption that was proposed for a clip; ``written_as``: what ``Captions`` says of its file; ``asked``: what
    extends the caption that was there, where something does; ``failed``: why there is no newer one."""

    clip: str
    new: str
    written_as: dict[str, Any]
    state: str = OPEN
    asked: str = ""
    failed: str = ""

    def is_of(self, how: Captions) -> bool:
        """Whether it goes where a run writes."""
        return all(self.written_as[name] == getattr(how, name) for name in ("format", "file_suffix"))


class Pending:
    """The captions of a folder that were proposed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        full = "review what it holds, and move it away"
        self._lines = Lines(self.path, "captions to be reviewed", most=_MOST_BYTES, full=full)
        self.proposals: dict[str, Proposal] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in what others have noted."""
        for entry in self._lines.news():
            with suppress(ValueError, TypeError, KeyError):
                self._take(entry)

    def propose(self, clip: str, new: str, how: Captions) -> None:
        """Note a caption for a clip, in the place of an earlier one."""
        written_as = {name: getattr(how, name) for name in _WRITTEN_AS}
        self._note({"clip": clip, "new": new, **written_as, "asked": how.asked})

    def decide(self, clip: str, decision: str) -> None:
        """Note what became of a caption."""
        self._note({"clip": clip, "decision": decision})

    def fail(self, clip: str, why: str) -> None:
        """Note that a proposed caption could not be made again."""
        if clip in self.proposals:
            self._note({"clip": clip, "failed": why})

    def _note(self, entry: dict[str, Any]) -> None:
        self._lines.add(entry)
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        clip = entry["clip"]
        if "new" in entry:
            written_as = {name: entry[name] for name in _WRITTEN_AS}
            Captions(**written_as)
            new, asked = entry["new"], entry.get("asked", "")
            if not all(isinstance(text, str) for text in (clip, new, asked)):
                raise TypeError
            self.proposals[clip] = Proposal(clip, new, written_as, asked=asked)
        elif "failed" in entry:
            self.proposals[clip].failed = str(entry["failed"])
        elif entry["decision"] in _DECISIONS:
            self.proposals[clip].state, self.proposals[clip].failed = entry["decision"], ""


@dataclass(frozen=True)
class Decision:
    """What somebody wants done with the proposed caption ``new``, which they have seen: write ``text`` in the place of
    ``old``, which they have seen too (accepted), leave the clip as it is (skipped), or decide again (open)."""

    clip: str
    decision: str
    text: str = ""
    old: str = ""
    new: str = ""

    def __post_init__(self) -> None:
        lengths = {"clip": 4096, "text": LONGEST, "old": MEGABYTE, "new": MEGABYTE}
        for name, most in lengths.items():
            found = getattr(self, name)
            if not isinstance(found, str) or len(found) > most:
                raise UniViGUError(f"decisions: {name} is {shown(found)}; expected text of at most {most} characters")
        if self.decision not in _DECISIONS:
            raise UniViGUError(f"decisions: found {shown(self.decision)}; expected one of {', '.join(_DECISIONS)}")


def decisions_of(values: Any) -> list[Decision]:
    """Decisions from plain values. Raises UniViGUError for anything else."""
    with suppress(TypeError):
        if isinstance(values, list):
            return [Decision(**one) for one in values]
    raise UniViGUError("decisions: expected a list of objects with clip, decision, text, old and new")


def listed(folder: Path, *, recursive: bool = True) -> dict[str, Any]:
    """What there is to review: each proposed caption with the one that the clip has now, by the names of the clips;
    ``gone`` counts those whose clips are not there any more."""
    proposals = Pending(folder).proposals
    clips = _clips(folder, recursive)
    found, texts = [], _Places(folder, list(clips.values()), writes=False)
    for name in sorted(proposals.keys() & clips.keys()):
        one, problem, old = proposals[name], "", None
        try:
            old = texts.of(one).texts.read(clips[name])
        except UniViGUError as error:
            problem = str(error)
        texts_now = {"clip": name, "old": old or "", "new": one.new}
        found.append({**texts_now, "state": one.state, "problem": problem, "failed": one.failed})
    gone = [name for name in proposals.keys() - clips.keys() if recursive or "/" not in name]
    return {"items": found, "gone": len(gone)}


def decide(folder: Path, decisions: Sequence[Decision], *, recursive: bool = True) -> list[dict[str, str]]:
    """Carry out decisions; what became of each: its ``state``, the caption that the clip has ``now``, the one that
    is proposed (``new``), and in ``problem`` what stood in the way. Where one of the two is not the one that the
    decision was made about any more, all stays as it is (``conflict``), and so does whatever cannot be written
    (``failed``)."""
    with _deciding:
        pending, clips = Pending(folder), _clips(folder, recursive)
        texts = _Places(folder, list(clips.values()))
        outcomes = []
        for one in decisions:
            outcome = {"clip": one.clip, "state": FAILED, "now": one.old, "new": one.new, "problem": ""}
            try:
                if one.clip not in pending.proposals or one.clip not in clips:
                    raise UniViGUError(f"{one.clip}: no caption waits for this clip; load the list again")
                outcome |= _decided(pending, texts.of(pending.proposals[one.clip]), clips[one.clip], one)
            except UniViGUError as error:
                outcome["problem"] = str(error)
            except OSError as error:  # a disk that is full: what was written before stays and is said
                outcome["problem"] = f"{one.clip}: could not be written ({error.strerror or error}); try again"
            outcomes.append(outcome)
        texts.close()
    return outcomes


def _decided(pending: Pending, extended: Extended, clip: Path, one: Decision) -> dict[str, str]:
    proposal, texts = pending.proposals[one.clip], extended.texts
    if one.decision != OPEN and one.new != proposal.new:  # captioned again meanwhile
        return {"state": CONFLICT, "now": texts.read(clip) or "", "new": proposal.new}
    if one.decision != ACCEPTED:
        if proposal.state != ACCEPTED:  # somebody else was quicker: their caption is written
            pending.decide(one.clip, one.decision)
        return {"state": proposal.state, "now": texts.read(clip) or ""}
    if not one.text.strip():
        raise UniViGUError(f"{one.clip}: the caption is empty; write one, or skip the clip")
    seen: list[str] = []

    def change(now: str | None) -> str | None:
        seen[:] = [now or ""]
        return one.text if (now or "") == one.old else None

    is_written = extended.put(clip, change, asked=proposal.asked, backup=bool(proposal.written_as["backup"]))
    now = seen[0] if seen else ""
    if not is_written and now != one.text:
        return {"state": CONFLICT, "now": now}
    pending.decide(one.clip, ACCEPTED)
    return {"state": ACCEPTED, "now": texts.read(clip) or one.text}  # as it stands there: a table has no line breaks


class _Places:
    """Where the captions of proposals go: each is written as its run said."""

    def __init__(self, folder: Path, clips: list[Path], *, writes: bool = True) -> None:
        self._folder, self._clips, self._writes = folder, clips, writes
        self._opened = dict[tuple[Any, ...], Extended]()
        self._stack = ExitStack()

    def of(self, proposal: Proposal) -> Extended:
        key = tuple(proposal.written_as.values())
        if key not in self._opened:
            how = Captions(**proposal.written_as)
            block = texts_of(self._folder, self._clips, how, writes=self._writes)
            self._opened[key] = Extended(self._folder, self._stack.enter_context(block))
        return self._opened[key]

    def close(self) -> None:
        self._stack.close()


def clip_named(folder: Path, name: str) -> Path:
    """A clip of the folder, by its name. Raises UniViGUError, in the same words for whatever else a name leads to."""
    parts = name.split("/")
    odd = {"\0", "\\"} if WINDOWS else {"\0"}
    is_name = all(part and not part.startswith(".") and not odd & set(part) for part in parts)
    with suppress(OSError, ValueError, UniViGUError):
        path = folder.joinpath(*parts)
        if is_name and is_open(path) and path.is_file() and path in find_clips(path.parent, recursive=False):
            return path
    raise UniViGUError("no clip of this name is in the folder; load the list again")


def _clips(folder: Path, recursive: bool) -> dict[str, Path]:
    return {clip.relative_to(folder).as_posix(): clip for clip in find_clips(folder, recursive=recursive)}
