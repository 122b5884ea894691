"""Caption a folder, as trainers expect it: a text beside each clip, or a table of all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UniViGUError, counted, printable, reason_of
from ..io import require_writable
from ..locks import Claims
from ..media.video import find_clips
from ..settings import shown
from .review import OPEN, RECORD, SKIPPED, Pending, Proposal
from .table import plain_name
from .texts import Extended, Texts, text_files, texts_of
from .wording import Captions
from .workers import RayWorkers, Shard

__all__ = ["CAPTIONS", "Captions", "FolderReport", "caption_folder", "text_files"]

CAPTIONS = Captions()
_ALL = Shard()
_LATELY = 20  # clips whose time tells how long the others will take


@dataclass(frozen=True)
class FolderReport:
    """What became of each clip.

    written   the files of the captions that were written, one for each clip
    skipped   those of the captions that were there already, or decided about, and stayed as they are
    failed    the clips that got no caption and the subfolders that could not be read, each with the reason
    busy      clips that another process captions at this moment
    captions  each clip that has a caption now, with it, in the order of their files; where they wait for review, the
              proposed ones
    waiting   captions of clips of the folder that wait for review, where that was asked for
    proposed  clips left alone because a caption of an earlier run waits
    outcomes  each clip and which of the above it is among, in the order of the work

    ``str()`` gives the counts and, on a line each, the failed clips with their reasons.
    """

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    busy: tuple[Path, ...] = ()
    captions: tuple[tuple[Path, str], ...] = field(default=(), compare=False)
    waiting: int | None = None
    proposed: tuple[Path, ...] = ()
    outcomes: tuple[tuple[Path, str], ...] = field(default=(), compare=False)

    def to_json(self) -> list[dict[str, Any]]:
        """Each clip on its own: name, outcome, and its caption or why it has none."""
        captions, reasons = dict(self.captions), dict(self.failed)
        return [
            {"clip": str(clip), "outcome": outcome, "caption": captions.get(clip), "reason": reasons.get(clip)}
            for clip, outcome in self.outcomes
        ]

    def __str__(self) -> str:
        counts = [f"{len(self.written)} captioned", f"{len(self.skipped)} skipped (already captioned)"]
        counts.append(f"{len(self.failed)} failed")
        counts += [f"{len(self.busy)} left to another run"] if self.busy else []
        counts += [f"{len(self.proposed)} already proposed"] if self.proposed else []
        total = sum(map(len, (self.written, self.skipped, self.failed, self.busy, self.proposed)))
        lines = [f"{total} clip{'' if total == 1 else 's'}: {', '.join(counts)}"]
        if self.waiting is not None:
            waits = "waits" if self.waiting == 1 else "wait"
            lines += [f"  {self.waiting} {waits} for your review in {RECORD}: open Review captions in ComfyUI"]
        return "\n".join([*lines, *_reasons(self.failed)])


def _reasons(failed: Iterable[tuple[Path, str]]) -> Iterator[str]:
    for path, reason in failed:  # most reasons begin with the file already
        yield f"  {reason}" if printable(str(path)) in reason else f"  {path}: {reason}"


class Captioner:
    """Gives captions to clips of a folder, one after the other; others give them to several at a time."""

    together = 1  # how many clips it is given at most

    def __init__(self, caption: Callable[[Path], str]) -> None:
        self._caption = caption

    def __call__(self, clips: Sequence[Path], upcoming: Sequence[Path]) -> Sequence[str | Exception]:
        """For each clip its caption, or why it has none; ``upcoming``: the clips that are asked for next."""
        found: list[str | Exception] = []
        for clip in clips:
            try:
                found.append(self._caption(clip))
            except Exception as error:
                found.append(error)
        return found

    def close(self) -> None:
        """Nothing more is asked for."""


def caption_folder(
    folder: str | Path,
    caption: Callable[[Path], str] | Captioner | RayWorkers,
    how: Captions = CAPTIONS,
    *,
    recursive: bool = True,
    shard: Shard = _ALL,
    on_clip: Callable[[int, int, Path, str], None] | None = None,
    on_stop: Callable[[FolderReport], object] = lambda _: None,
) -> FolderReport:
    """Write ``clip.txt`` (UTF-8) beside each ``clip.mp4`` of a folder and, with ``recursive``, its subfolders, or
    what else ``how`` says.

    ``caption(path)`` gives the text of one clip, a ``Captioner`` those of several; ``RayWorkers``, each a
    ``FolderWorker``, do all of the work in their processes. ``how`` puts other words around a text.
    Clips whose text has words are skipped without a call, unless ``how`` replaces or extends them; a text that someone
    writes while the model works stays as well. Clips that differ only in suffix get different files: ``clip.mp4`` ->
    ``clip.txt``, ``clip.mov`` -> ``clip.mov.txt`` (see ``text_files``). ``on_clip(index, total, path, words)`` is
    called before each clip, skipped ones too, index from 0; the words are such as ``12 of 340, about 8 min left``.
    Several processes may work on a folder: each clip is captioned by one of them, whether each has a ``shard`` of them,
    in the order of their names, or all work on all.

    A clip that fails, whatever the exception, or that gets an empty caption, is noted and the work goes on; only
    KeyboardInterrupt and its like stop it, and ``on_stop`` is called with what was done till then. Raises UniViGUError
    when the folder is missing or holds no clips.
    """
    folder = Path(folder)
    failed: list[tuple[Path, str]] = []
    clips = clips_of(folder, recursive, failed)
    with Claims(folder) as claims, texts_of(folder, clips, how) as texts:
        work = _work_of(folder, texts, how)
        run = _Run(work, shard.part(_chosen(folder, clips, how.only)), failed, on_clip)
        try:
            if isinstance(caption, RayWorkers):
                run.captioned_by(caption, FolderTask(folder.absolute(), tuple(map(work.name, clips)), how))
                claims.alone()  # what killed workers have left goes
            else:
                captioner = caption if isinstance(caption, Captioner) else Captioner(caption)
                with closing(captioner), _Batches(run, captioner, claims) as batches:
                    for clip in run.chosen:
                        run.tell(clip)
                        batches.add(clip)
        except BaseException:
            on_stop(_report(work, clips, run))
            raise
        return _report(work, clips, run)


@dataclass(frozen=True)
class FolderTask:
    """A folder to caption: where it lies, its clips by their names in it, and how."""

    folder: Path
    clips: tuple[str, ...]
    how: Captions


class FolderWorker:
    """Captions clips of folders in a process of its own; ``captioner`` makes what captions those of one."""

    def __init__(self, captioner: Callable[[Path], Captioner]) -> None:
        self._captioner_of, self._held = captioner, ExitStack()

    def open(self, task: FolderTask) -> int:
        with ExitStack() as held:
            self._folder, clips = task.folder, [task.folder / name for name in task.clips]
            self._claims = held.enter_context(Claims(task.folder))
            texts = held.enter_context(texts_of(task.folder, clips, task.how))
            self._captioner = held.enter_context(closing(self._captioner_of(task.folder)))
            self._work = _work_of(task.folder, texts, task.how)
            self._held = held.pop_all()
        return self._captioner.together

    def __call__(
        self, pieces: Sequence[str], upcoming: Sequence[str]
    ) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
        """The clips by what became of them, and those that failed, each with the reason."""
        clips = [self._folder / name for name in pieces]
        run = _Run(self._work, [*clips, *(self._folder / name for name in upcoming)], [])
        with _Batches(run, self._captioner, self._claims) as batches:
            for clip in clips:
                batches.add(clip)
        name = self._work.name
        return {kind: list(map(name, some)) for kind, some in run.done.items()}, [(name(a), b) for a, b in run.failed]

    def close(self) -> None:
        self._held.close()


class _Run:
    """What has become of the clips of a folder.

    ``done``: the clips by what became of them; those that failed are added to ``failed``, each with the reason."""

    def __init__(
        self,
        work: _Work,
        chosen: list[Path],
        failed: list[tuple[Path, str]],
        on_clip: Callable[[int, int, Path, str], None] | None = None,
    ) -> None:
        self.work, self.chosen, self.failed, self._on_clip = work, chosen, failed, on_clip
        self.done: dict[str, list[Path]] = {"written": [], "skipped": [], "busy": [], "proposed": []}
        self.pace = Pace(left=sum(map(work.is_wanted, chosen)))
        self._told = 0

    def tell(self, clip: Path) -> None:
        """Say which clip it is the turn of, and how long the others will take."""
        index, total = self._told, len(self.chosen)
        self._told += 1
        if self._on_clip is not None:
            self._on_clip(index, total, clip, self.pace.words(index, total))

    def do(self, clip: Path, part: Callable[[Path], str]) -> bool:
        """Do part of the work for a clip; whether the next part is to be done. One bad clip must not cost the other
        captions: the report names it."""
        try:
            outcome = part(clip)
        except Exception as error:
            self.failed.append((clip, reason_of(error)))
            self.work.note_failure(clip, reason_of(error))
            return False
        if outcome:
            self.done[outcome].append(clip)
        return not outcome

    def captioned_by(self, workers: RayWorkers, task: FolderTask) -> None:
        """Have others caption the clips. They look again at what is there; to ask them for every caption of a folder
        that is nearly done would take longer."""
        known = {self.work.name(clip): clip for clip in self.chosen}

        def wanted() -> Iterator[str]:
            for name, clip in known.items():
                if self.do(clip, self.work.begun):
                    yield name
                else:
                    self.tell(clip)

        answers = workers.map(task, wanted())
        while True:
            began = time.monotonic()
            try:
                pieces, found = next(answers)
            except StopIteration:
                return
            self.pace.took(len(pieces), time.monotonic() - began)
            if isinstance(found, UniViGUError):
                self.failed += [(known[piece], str(found)) for piece in pieces]
            else:
                for kind, names in found[0].items():
                    self.done[kind] += map(known.__getitem__, names)
                here, there = (f"{folder}{os.sep}" for folder in (self.work.folder, task.folder))
                self.failed += [(known[piece], why.replace(there, here)) for piece, why in found[1]]
            for piece in pieces:
                self.tell(known[piece])


class _Batches:
    """The clips of a folder on their way: each is claimed, and waits until there are as many as are captioned at once,
    or no more come."""

    def __init__(self, run: _Run, captioner: Captioner, claims: Claims) -> None:
        self._run, self._captioner, self._claims = run, captioner, claims
        self._waiting: list[Path] = []
        self._held, self._next = ExitStack(), 0

    def __enter__(self) -> _Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.caption()
        finally:
            self._held.close()

    def add(self, clip: Path) -> None:
        """Caption a clip, the next of those that are chosen, as soon as enough others wait."""
        run, self._next = self._run, self._next + 1
        with ExitStack() as held:
            if not held.enter_context(self._claims.claimed(str(run.work.claimed_as(clip)))):
                run.done["busy"].append(clip)
            elif run.do(clip, run.work.begun):
                self._waiting.append(clip)
                self._held.enter_context(held.pop_all())
        if len(self._waiting) >= self._captioner.together:
            self.caption()

    def caption(self) -> None:
        """Caption the clips that wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        run, most = self._run, self._captioner.together
        rest = islice(filter(run.work.is_wanted, islice(run.chosen, self._next, None)), most)
        with run.pace.timed(len(waiting)):
            texts = self._captioner(waiting, list(rest) if most > 1 else ())
        for clip, text in zip(waiting, texts, strict=True):
            run.do(clip, partial(run.work.finished, text=text))
        self._held.close()


def _report(work: _Work, clips: list[Path], run: _Run) -> FolderReport:
    done, failed = run.done, run.failed
    kinds = {**{clip: "failed" for clip, _ in failed}, **{clip: kind for kind, some in done.items() for clip in some}}
    return FolderReport(
        tuple(map(work.file, done["written"])),
        tuple(map(work.place, done["skipped"])),
        tuple(failed),
        tuple(done["busy"]),
        work.captions([*done["written"], *done["skipped"], *done["proposed"]]),
        work.waiting(clips),
        tuple(done["proposed"]),
        tuple((clip, kinds[clip]) for clip in run.chosen if clip in kinds),
    )


def survey(
    folder: str | Path, how: Captions = CAPTIONS, *, recursive: bool = True, shard: Shard = _ALL
) -> tuple[str, int]:
    """Which clips ``caption_folder`` would caption and where their texts would go, in words, and how many subfolders
    and texts cannot be read; nothing is changed."""
    folder, failed = Path(folder), list[tuple[Path, str]]()
    clips = clips_of(folder, recursive, failed)
    with texts_of(folder, clips, how, writes=False) as texts:
        work = _work_of(folder, texts, how)
        chosen = shard.part(_chosen(folder, clips, how.only))
        wanted = []
        for clip in chosen:
            try:
                wanted += [] if work.waits(clip) or work.is_done(clip) else [(clip, work.file(clip))]
            except UniViGUError as error:
                failed.append((clip, str(error)))
    lines = [f"{counted(len(clips), 'clip')}: {len(wanted)} to caption"]
    lines += [f"  {clip} -> {place}" for clip, place in wanted]
    return "\n".join([*lines, *_reasons(failed)]), len(failed)


def clips_of(folder: Path, recursive: bool, unreadable: list[tuple[Path, str]]) -> list[Path]:
    """The clips of a folder, as ``find_clips`` finds them. Raises UniViGUError where there is none."""
    if not (clips := find_clips(folder, recursive=recursive, unreadable=unreadable)):
        raise UniViGUError(
            f"{folder}: found no videos here{' or in its subfolders' if recursive else ''}; expected files such as "
            "clip.mp4, clip.mov, clip.webm or clip.gif. Check the folder"
        )
    return clips


def _chosen(folder: Path, clips: list[Path], only: str) -> list[Path]:
    """The clips that are named, one a line; all where none is."""
    known = {clip.relative_to(folder).as_posix(): clip for clip in clips}
    names = [line if line in known else line.strip() for line in only.split("\n")]
    if any(name and name not in known for name in names):
        plain = {plain_name(name): name for name in known}
        names = [name if name in known else plain.get(plain_name(name), name) for name in names]
    names = [name for name in dict.fromkeys(names) if name]
    if missing := [name for name in names if name not in known]:
        raise UniViGUError(
            f"only: {shown(missing[0])} is not a clip in this folder; expected names such as {next(iter(known))}"
        )
    return [known[name] for name in names] if names else clips


class _Work:
    """What is done with each clip of a folder."""

    def __init__(self, folder: Path, texts: Texts, how: Captions) -> None:
        self.folder, self._texts, self._how = folder, texts, how
        self._extended = Extended(folder, texts)

    def is_wanted(self, clip: Path) -> bool:
        """Whether a clip is to be captioned, as far as can be told without reading its text."""
        return self._how.overwrite or bool(self._how.asked) or not self._texts.is_taken(clip)

    def begun(self, clip: Path) -> str:
        """What became of a clip without a caption: ``skipped`` where a text with words is there already, ``proposed``
        where one waits for review; empty where it is to be captioned."""
        if self.waits(clip):
            return "proposed"
        if self.is_done(clip):
            return "skipped"
        target = self._texts.place(clip)
        require_writable(target)
        if os.path.lexists(target) and not target.is_file():
            raise UniViGUError(f"{target}: not a regular file; move it away to have the clip captioned")
        return ""

    def finished(self, clip: Path, text: str | Exception) -> str:
        """What became of a clip that has been captioned: ``written``, or ``skipped`` where a text with words has come
        meanwhile."""
        if isinstance(text, Exception):
            raise text
        if not text.strip():
            raise UniViGUError(
                f"{clip}: the caption came out empty; nothing was written. Try another seed or more steps"
            )
        return "written" if self._put(clip, self._how.worded(text)) else "skipped"

    def place(self, clip: Path) -> Path:
        """The file that the caption of a clip lies in."""
        return self._texts.place(clip)

    def file(self, clip: Path) -> Path:
        """The file that the caption of a clip was written to."""
        return self.place(clip)

    def name(self, clip: Path) -> str:
        """The name of a clip in the folder."""
        return clip.relative_to(self.folder).as_posix()

    def claimed_as(self, clip: Path) -> Path:
        """What a process claims that captions a clip: where the caption will be, but not all of a table."""
        return self._texts.place(clip) if self._how.format in ("txt", "json") else clip

    def note_failure(self, clip: Path, why: str) -> None:
        """Leave a note where somebody waits for a caption that has failed."""

    def captions(self, clips: list[Path]) -> tuple[tuple[Path, str], ...]:
        """The captions that can be read; those of links that lead out cannot."""
        found = []
        for clip in sorted(clips, key=lambda clip: (self._texts.place(clip), clip)):
            with suppress(UniViGUError):
                if (words := self._words(clip)) is not None:
                    found.append((clip, words))
        return tuple(found)

    def waits(self, clip: Path) -> bool:
        """Whether a caption of an earlier run waits for review."""
        return False

    def waiting(self, clips: list[Path]) -> int | None:
        """How many captions of these clips wait for review."""
        return None

    def is_done(self, clip: Path) -> bool:
        """Whether a clip has its caption."""
        how = self._how
        if how.asked:
            return self._extended.has(clip, how.asked, self._texts.read(clip))
        return not how.overwrite and self._texts.is_taken(clip)

    def _put(self, clip: Path, text: str) -> bool:
        how = self._how

        def change(old: str | None) -> str | None:
            if self._extended.has(clip, how.asked, old):  # somebody was quicker
                return None
            return how.change(text)(old)

        return self._extended.put(clip, change, asked=how.asked, backup=how.backup, blind=how.overwrite)

    def _words(self, clip: Path) -> str | None:
        return self._texts.read(clip)


class _Reviewed(_Work):
    """The same where captions wait for somebody to read them. A clip whose caption waits is left alone, and so is one
    that was decided about, unless captions are to be replaced, or extended by something else; ``only`` has a clip
    captioned in any case. What was proposed in another format does not count."""

    def __init__(self, folder: Path, texts: Texts, how: Captions) -> None:
        super().__init__(folder, texts, how)
        self._pending = Pending(folder)

    def is_wanted(self, clip: Path) -> bool:
        return not (self.waits(clip) or self._is_skipped(clip)) and super().is_wanted(clip)

    def file(self, clip: Path) -> Path:
        return self._pending.path

    def note_failure(self, clip: Path, why: str) -> None:
        with suppress(UniViGUError):  # the report says it, too
            self._pending.fail(self.name(clip), why.replace(f"{self.folder}{os.sep}", ""))

    def waits(self, clip: Path) -> bool:
        if self._how.only.strip():
            return False
        self._pending.refresh()
        found = self._proposal(clip)
        return found is not None and found.state == OPEN and found.is_of(self._how)

    def waiting(self, clips: list[Path]) -> int | None:
        proposals = map(self._proposal, clips)
        return sum(found is not None and found.state == OPEN for found in proposals)

    def is_done(self, clip: Path) -> bool:
        return not self._how.only.strip() and (self._is_skipped(clip) or super().is_done(clip))

    def _is_skipped(self, clip: Path) -> bool:
        """Whether somebody wanted no such caption."""
        how, found = self._how, self._proposal(clip)
        if found is None or how.overwrite or how.only.strip():
            return False
        return found.state == SKIPPED and found.is_of(how) and found.asked == how.asked

    def _put(self, clip: Path, text: str) -> bool:
        how, now = self._how, self._texts.read(clip)
        changed = how.change(text)(now)
        if (changed is None or self._extended.has(clip, how.asked, now)) and not how.only.strip():
            return False
        self._pending.propose(self.name(clip), changed or text, how)
        return True

    def _words(self, clip: Path) -> str | None:
        found = self._proposal(clip)
        is_ours = found is not None and found.state == OPEN and found.is_of(self._how)
        return found.new if found is not None and is_ours else super()._words(clip)

    def _proposal(self, clip: Path) -> Proposal | None:
        return self._pending.proposals.get(self.name(clip))


def _work_of(folder: Path, texts: Texts, how: Captions) -> _Work:
    return (_Reviewed if how.review else _Work)(folder, texts, how)


class Pace:
    """How far a folder is, and how long the rest will take, from how long the last clips took."""

    def __init__(self, left: int) -> None:
        self._left, self._began, self._took = left, 0.0, list[float]()

    @contextmanager
    def timed(self, clips: int) -> Iterator[None]:
        """The time that so many clips take."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.took(clips, time.monotonic() - began)

    def took(self, clips: int, seconds: float) -> None:
        """So many clips took so long."""
        self._took = [*self._took, *[seconds / clips] * clips][-_LATELY:]
        self._left -= clips

    def words(self, index: int, total: int) -> str:
        where = f"{index + 1} of {total}"
        if not self._took:
            return where
        minutes = sum(self._took) / len(self._took) * max(self._left, 0) / 60
        if minutes >= 90:
            return f"{where}, about {minutes / 60:.1f} h left"
        return f"{where}, about {minutes:.0f} min left" if minutes >= 1 else f"{where}, less than a minute left"
