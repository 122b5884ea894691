"""Caption a long video part by part: the parts are read ahead, captions are kept in a journal, and written whole."""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..content import content_of
from ..errors import UniViGUError, printable
from ..io import append, read_text, require_writable, write_text
from ..locks import Claims, appending
from ..media.video import ClipSpec, as_srt, write_captioned
from ..media.video.captioned import LINE, Cue, require_copied
from ..media.video.footage import FOOTAGE, Footage
from ..media.video.shots import Cutting, Shot, shots

FORMS = (".srt", ".vtt", ".json", ".csv")
CHAPTERS = (".mp4", ".mov", ".mkv", ".webm")
_MOST = 2**28  # bytes of a journal


@dataclass(frozen=True)
class Line:
    """A caption and when it holds: seconds from the film's first frame."""

    start: float
    end: float
    caption: str

    def __str__(self) -> str:
        return f"{clock(self.start)} --> {clock(self.end)}\t{plain(self.caption)}"


def clock(seconds: float) -> str:
    """Seconds as ``00:00:01.000``."""
    whole, rest = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{rest:03}"


def plain(text: str) -> str:
    """A caption in one line."""
    return " ".join(printable(text).split())


def read_ahead(
    path: str | Path, how: Cutting, spec: ClipSpec, footage: Footage = FOOTAGE, *, done: float = 0.0, ahead: int = 16
) -> Generator[Shot, None, None]:
    """The shots of a film as ``shots`` gives them; a thread reads up to ``ahead`` of them in advance."""
    stop = threading.Event()
    start, seconds = footage.start, footage.seconds
    found = shots(path, how, spec, start=start, seconds=seconds, done=done, is_stopped=stop.is_set)
    pool = ThreadPoolExecutor(1, "uvg film")
    try:
        waiting = deque(pool.submit(next, found, None) for _ in range(max(1, ahead)))
        while (shot := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, found, None))
            yield shot
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        found.close()


def caption_film(
    path: str | Path,
    read: Callable[[float], Iterator[Shot]],
    describe: Callable[[Sequence[Shot]], Sequence[str]],
    *,
    together: int = 1,
    out: Path | None = None,
    facts: dict[str, Any] | None = None,
    on_line: Callable[[Line], object] = lambda _: None,
    note: Callable[[str], object] = lambda _: None,
) -> list[Line]:
    """Caption the parts of a film and, with ``out``, write them in the form that its suffix names (``FORMS``), or a
    copy of the film with chapters (``CHAPTERS``).

    Captions are kept in ``OUT.part`` as they come, so that a run that was stopped goes on from there; the file itself
    appears whole in the end. Raises UniViGUError for another suffix, a film that cannot be read or copied, and while
    another run writes ``out``.

    Args:
        read: the parts from so many seconds on. describe: the captions of ``together`` parts or fewer.
        facts: what captions depend on beside the film. A journal that was made with others is not used.
        on_line: called with each caption, those of an earlier run too. note: called with what the film lacks.
    """
    path = Path(path)
    if out is None:
        lines: list[Line] = []
        _captioned(read(0.0), describe, together, [lines.append, on_line], note)
        return lines
    require_form(out, path)
    try:
        content = content_of(path)
    except FileNotFoundError:
        raise UniViGUError(f"{path}: no such file; expected a video file. Check the path") from None
    with _journal(out, {"film": content, **(facts or {})}, note) as (lines, keep):
        for line in lines:
            on_line(line)
        if lines:
            note(f"{out}: goes on after {clock(lines[-1].end)}, where an earlier run stopped")
        done = lines[-1].end if lines else 0.0
        _captioned(read(done), describe, together, [keep, lines.append, on_line], note)
        write_lines(out, lines, path)
    return lines


def _captioned(
    parts: Iterator[Shot],
    describe: Callable[[Sequence[Shot]], Sequence[str]],
    together: int,
    takers: Sequence[Callable[[Line], object]],
    note: Callable[[str], object],
) -> None:
    with closing(parts):  # type: ignore[type-var]
        while some := list(islice(parts, together)):
            texts: dict[float, str] = {}
            for size in dict.fromkeys(shot.pixels.shape for shot in some):
                group = [shot for shot in some if shot.pixels.shape == size]
                texts |= zip((shot.start for shot in group), _described(group, describe), strict=True)
            for shot in some:
                for take in takers:
                    take(Line(shot.start, shot.end, texts[shot.start]))
            if some[-1].damage:
                note(f"{some[-1].damage}; captions end at {clock(some[-1].end)}")


def _described(shots: Sequence[Shot], describe: Callable[[Sequence[Shot]], Sequence[str]]) -> Sequence[str]:
    """The captions of parts; fewer at a time where memory does not suffice."""
    try:
        return describe(shots)
    except torch.OutOfMemoryError:
        if len(shots) == 1:
            raise
    middle = len(shots) // 2
    return [*_described(shots[:middle], describe), *_described(shots[middle:], describe)]


# The journal


@contextmanager
def _journal(
    out: Path, facts: dict[str, Any], note: Callable[[str], object]
) -> Iterator[tuple[list[Line], Callable[[Line], None]]]:
    """The captions of an earlier run, and what keeps another one. The journal is removed when all is done.

    Raises UniViGUError while another run writes ``out``."""
    path = out.with_name(out.name + ".part")
    for name in (out, path):
        require_writable(name)
    with Claims(out.parent) as claims, claims.claimed(str(out)) as is_ours:
        if not is_ours:
            raise UniViGUError(f"{out}: is being written by another run; wait until it ends, or choose another name")
        is_needed = True
        try:
            with appending(path) as handle:
                head = _row(facts)
                lines, end = _kept(path, json.loads(head), note)
                is_needed = bool(end)
                os.ftruncate(handle, end)
                if not end:
                    append(handle, head.encode())

                def keep(line: Line) -> None:
                    nonlocal is_needed
                    append(handle, _row(asdict(line)).encode())
                    is_needed = True

                yield lines, keep
                is_needed = False
        finally:
            if not is_needed:
                with suppress(OSError):
                    path.unlink()


def _row(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _kept(path: Path, facts: dict[str, Any], note: Callable[[str], object]) -> tuple[list[Line], int]:
    """The captions in a journal, and the bytes it takes to hold them: none where it was made from something else.
    Raises UniViGUError for what is no journal."""
    whole = [row for row in read_text(path, most=_MOST, exact=True).splitlines(keepends=True) if row.endswith("\n")]
    if not whole:
        return [], 0
    try:
        begun, *rows = map(json.loads, whole)
        changed = [name for name in {**begun, **facts} if begun.get(name) != facts.get(name)]
        lines = [Line(float(row["start"]), float(row["end"]), str(row["caption"])) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UniViGUError(
            f"{path}: is not a journal of captions; move it away, or choose another name with -o"
        ) from None
    if changed:
        note(f"{path}: an earlier run had another {' and another '.join(changed)}; this one starts anew")
        return [], 0
    return lines, sum(len(row.encode()) for row in whole)


# The forms


def require_form(out: Path, film: Path) -> None:
    """Raise UniViGUError for a suffix that nothing is written in, and a film that cannot be copied into it."""
    suffix = out.suffix.lower()
    if suffix not in FORMS + CHAPTERS:
        raise UniViGUError(
            f"{out}: captions of a film are written as {', '.join(FORMS)}, or as chapters into a copy of it "
            f"({', '.join(CHAPTERS)}); choose a name that ends in one of these"
        )
    if suffix in CHAPTERS:
        require_copied(out, film)


def write_lines(out: Path, lines: Sequence[Line], film: Path) -> None:
    """Write captions in the form that the suffix names. The file appears whole or not at all."""
    suffix = out.suffix.lower()
    if suffix in CHAPTERS:
        write_captioned(out, film, "", subtitles=False, chapters=_cues(lines, wrapped=False))
    else:
        write_text(out, {".srt": as_lines_srt, ".vtt": as_vtt, ".json": as_rows, ".csv": as_csv}[suffix](lines))


def as_lines_srt(lines: Iterable[Line]) -> str:
    """The text of an .srt file."""
    return as_srt(_cues(lines))


def as_vtt(lines: Iterable[Line]) -> str:
    """The text of a .vtt file, WebVTT."""
    cues = "".join(
        f"\n{clock(line.start)} --> {clock(line.end)}\n{_escaped(cue.text)}\n"
        for line, cue in zip(lines, _cues(lines), strict=True)
    )
    return f"WEBVTT\n{cues}"


def as_rows(lines: Iterable[Line]) -> str:
    """The text of a .json file: a list with start and end in seconds, and the caption."""
    return json.dumps(rows_of(lines), indent=1, ensure_ascii=False) + "\n"


def as_csv(lines: Iterable[Line]) -> str:
    """The text of a .csv file, with a line of titles; times in seconds."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["start", "end", "caption"])
    writer.writerows([f"{line.start:.3f}", f"{line.end:.3f}", line.caption] for line in lines)
    return file.getvalue()


def rows_of(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Plain values: start and end in seconds, rounded to milliseconds, and the caption."""
    return [{"start": round(one.start, 3), "end": round(one.end, 3), "caption": one.caption} for one in lines]


def _cues(lines: Iterable[Line], *, wrapped: bool = True) -> list[Cue]:
    """Lines as cues; none without a text, which would end a cue before it began."""
    found = []
    for line in lines:
        text = plain(line.caption) or "…"
        text = "\n".join(textwrap.wrap(text, LINE)) if wrapped else text
        found.append(Cue(round(1000 * line.start), round(1000 * line.end), text))
    return found


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
