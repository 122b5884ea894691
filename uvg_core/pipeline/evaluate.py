"""Clips and captions of whole benchmarks, in the layouts that the benchmarks' own programs read. No score is claimed
here: those programs give it; ``scores.py`` has the ones that are computed without a judge.

Layouts, each after the program that reads it:

    VBench      ``{prompt}-{0..4}.mp4`` in one folder (vbench/__init__.py looks the names up as they are);
                25 clips of each prompt of temporal_flickering, of which static_filter.py keeps five (prompts/README.md)
    DREAM-1K    the lines of DREAM-1k.jsonl with the caption as the assistant's text (tarsier's evaluation/evaluate.py)
    VDC         ``[{"doc": {"video_id"}, "resps": [[caption]]}]`` (AuroraCap's post_eval/process_vdc_result.py)
    COCO        ``[{"image_id", "caption"}]`` (pycocotools' loadRes); for MSR-VTT and VATEX, too, whose captions
                lmms-eval and others score through it
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from ..errors import UniViGUError, reason_of
from ..io import MEGABYTE, WINDOWS, read_text, write_new, write_text
from ..lines import Lines
from ..media.video import find_clips
from ..settings import shown

SAMPLES, FLICKERING, FLICKERING_SAMPLES = 5, "temporal_flickering", 25
FORMATS = ("coco", "msrvtt", "vatex", "dream1k", "vdc")
REPORT = "evaluate.json"
_IN_A_ROW = 3
_MOST = 512 * MEGABYTE  # of an annotation file
_NEVER_IN_NAMES = re.compile(r'[<>:"|?*\\/\x00-\x1f]' if WINDOWS else r"[/\x00]")


def seed_of(seed: int, *of: object) -> int:
    """The seed of one clip or caption: the same in every shard and after every stop."""
    data = json.dumps([seed, *of], ensure_ascii=False).encode("utf-8", "backslashreplace")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 1


# Clips


@dataclass(frozen=True)
class Sample:
    """One clip of a prompt. ``problem``: why its name cannot be a file's."""

    prompt: str
    index: int
    seed: int
    problem: str | None

    @property
    def name(self) -> str:
        return f"{self.prompt}-{self.index}.mp4"


def read_prompts(path: Path) -> dict[str, int]:
    """Prompts and how many clips each gets, from a text file with one a line (``#`` begins a comment) or VBench's
    ``VBench_full_info.json``. Raises UniViGUError for what is neither."""
    text = _text(path)
    if path.suffix.lower() != ".json":
        lines = map(str.strip, text.split("\n"))
        counts = {line: SAMPLES for line in lines if line and not line.startswith("#")}
    else:
        counts = {}
        for entry in _parsed(path, text) or [{}]:
            prompt = entry.get("prompt_en") if isinstance(entry, dict) else None
            if not isinstance(prompt, str) or not prompt.strip():
                raise UniViGUError(
                    f"{path}: {shown(entry)} has no prompt_en; expected VBench_full_info.json, or a .txt file with one "
                    "prompt per line"
                )
            many = FLICKERING_SAMPLES if FLICKERING in entry.get("dimension", ()) else SAMPLES
            counts[prompt] = max(many, counts.get(prompt, 0))
    if not counts:
        raise UniViGUError(f"{path}: the file contains no prompt; expected one per line (# begins a comment)")
    return counts


def samples_of(prompts: Mapping[str, int], seed: int, each: int | None = None) -> list[Sample]:
    """The clips to make; ``each``: of every prompt alike."""
    return [
        Sample(prompt, index, seed_of(seed, prompt, index), _problem(prompt))
        for prompt, many in prompts.items()
        for index in range(each or many)
    ]


def _problem(prompt: str) -> str | None:
    """Why no file can be named after a prompt: VBench finds clips by the whole prompt, so nothing is put in its
    place."""
    if found := _NEVER_IN_NAMES.search(prompt):
        return f"contains {found[0]!r}, which a file's name cannot hold"
    if len(os.fsencode(f"{prompt}-00.mp4")) > 255:
        return "is longer than the 248 bytes that a file's name has room for"
    return "is hidden, because it begins with a dot" if prompt.startswith(".") else None


@dataclass
class Outcome:
    """What became of the work of one run: how much was made, how much was there before, and each failure."""

    made: int = 0
    there: int = 0
    failed: list[str] = field(default_factory=list)

    def tried(self, name: str, make: Callable[[], object]) -> bool:
        """Whether something could be made; why not is noted, and the work goes on."""
        try:
            make()
        except (torch.OutOfMemoryError, MemoryError):
            raise  # the next one is of the same size
        except UniViGUError as error:
            self.failed.append(str(error))
            return False
        except Exception as error:  # a bad clip must not cost the others
            self.failed.append(f"{name}: {reason_of(error)}")
            return False
        self.made += 1
        return True

    def __str__(self) -> str:
        counts = f"{self.made} made, {self.there} already there, {len(self.failed)} failed"
        return "\n".join([counts, *(f"  {why}" for why in self.failed)])


def make_clips(
    samples: list[Sample],
    out: Path,
    make: Callable[[Sample, Path], object],
    outcome: Outcome,
    note: Callable[[str], object],
) -> None:
    """Make the clips that are not in the folder ``out``. One that fails does not keep the others from being made, but
    several in a row end the run: a full disk would cost a clip's time for each of them."""
    there, in_a_row = set(os.listdir(out)), 0
    for place, sample in enumerate(samples, 1):
        path = out / sample.name
        if sample.name in there:
            outcome.there += 1
            continue
        if sample.problem:
            outcome.failed.append(f"{sample.name}: left out; the prompt {sample.problem}")
            continue
        if os.path.lexists(path) and sample.name not in os.listdir(out):
            outcome.failed.append(f"{path}: a name in other letter case is there; use a disk that tells them apart")
            continue
        note(f"[{place}/{len(samples)}] {sample.name}")
        in_a_row = 0 if outcome.tried(sample.name, partial(make, sample, path)) else in_a_row + 1
        if in_a_row == _IN_A_ROW:
            outcome.failed.append(f"stopped, because {_IN_A_ROW} clips in a row failed")
            return


# Captions


@dataclass(frozen=True)
class Item:
    """One clip to caption: what the benchmark calls it, its file (None where it is missing), and its line in the
    benchmark's file."""

    id: Any
    clip: Path | None
    row: Any = None


def read_items(source: Path, clips: Path | None, form: str | None) -> tuple[str, list[Item]]:
    """The layout of the results, and the clips of a folder or of a benchmark's own file, whose clips lie in the folder
    ``clips``. Raises UniViGUError where they are neither, or not of the layout asked for."""
    if os.path.isdir(source):
        if form == "dream1k":
            raise UniViGUError(f"{source}: dream1k needs its annotations; pass DREAM-1k.jsonl and --clips FOLDER")
        files = _by_stem(source)
        if not files:
            raise UniViGUError(f"{source}: found no videos here; expected the clips of a benchmark. Check the folder")
        return form or "coco", [Item(stem, path) for stem, path in files.items()]
    found, rows = _annotations(source)
    if clips is None:
        raise UniViGUError(f"{source}: pass the folder of its clips as --clips FOLDER")
    if form not in (None, found) and not (form == "coco" and found in ("msrvtt", "vatex")):
        raise UniViGUError(f"{source}: found annotations of {found}; --format is {form}. Leave --format out")
    files = _by_stem(clips)
    return form or found, [Item(id, files.get(Path(name).stem) or files.get(name), row) for id, name, row in rows]


def read_references(path: Path) -> dict[Any, list[str]]:
    """The human captions of each clip. Raises UniViGUError where a file has none that words are compared with."""
    form, rows = _annotations(path, every=True)
    if form in ("dream1k", "vdc"):
        raise UniViGUError(
            f"{path}: {form} is scored by its own program, with a language model; pass annotations of COCO, MSR-VTT or "
            "VATEX"
        )
    return {id: row for id, _, row in rows if row}


def _annotations(path: Path, every: bool = False) -> tuple[str, list[tuple[Any, str, Any]]]:
    """The benchmark that a file is of; what it calls each clip, the name of the clip's file, and its own line or, where
    it has captions to compare with, those. ``every``: training clips, too."""
    text = _text(path)
    data = (
        [_parsed(path, line) for line in text.split("\n") if line.strip()] if _is_lines(path) else _parsed(path, text)
    )
    try:
        if isinstance(data, list) and data:
            return _rows(data)
        if "sentences" in data:
            return "msrvtt", _msrvtt(data, every)
        told: dict[Any, list[str]] = {}
        for one in data["annotations"]:
            told.setdefault(one["image_id"], []).append(one["caption"])
        return "coco", [
            (one["id"], str(one.get("file_name", one["id"])), told.get(one["id"])) for one in data["images"]
        ]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UniViGUError(
            f"{path}: not the annotations of a known benchmark ({type(error).__name__}: {error}); expected those of "
            "DREAM-1K, VDC, MSR-VTT, VATEX or COCO, or a folder of clips"
        ) from None


def _rows(rows: list[Any]) -> tuple[str, list[tuple[Any, str, Any]]]:
    if "messages" in rows[0]:
        for row in rows:
            _answer(row)
        return "dream1k", [(f"{row['dataset']}_{row['idx']}", str(row.get("vid", row["idx"])), row) for row in rows]
    if "videoID" in rows[0]:
        return "vatex", [(row["videoID"], row["videoID"], row.get("enCap")) for row in rows]
    return "vdc", [(row["video_id"], row["video_id"], row) for row in rows]


def _msrvtt(data: dict[str, Any], every: bool) -> list[tuple[Any, str, Any]]:
    told: dict[Any, list[str]] = {}
    for one in data["sentences"]:
        told.setdefault(one["video_id"], []).append(one["caption"])
    tests = [one["video_id"] for one in data["videos"] if every or one.get("split") == "test"]
    return [(id, id, told.get(id)) for id in tests or [one["video_id"] for one in data["videos"]]]


def _answer(row: Any) -> dict[str, Any]:
    """Where the caption goes in a line of DREAM-1K: its scorer reads the assistant's texts that have a reference."""
    places = [part for message in row["messages"] if message["role"] == "assistant" for part in message["content"]]
    return next(part for part in reversed([{}, *places]) if part.get("type") == "text" or not part)


def written_as(form: str, items: list[Item], captions: Mapping[str, str]) -> str:
    """The captions that there are, in the layout of a benchmark."""
    done = [(item, captions[key_of(item)]) for item in items if key_of(item) in captions]
    if form == "dream1k":
        lines = []
        for item, caption in done:
            row = copy.deepcopy(item.row)
            _answer(row)["text"] = caption
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        return "".join(lines)
    if form == "vdc":
        results: list[Any] = [{"doc": {"video_id": item.id}, "resps": [[caption]]} for item, caption in done]
    else:
        results = [{"image_id": item.id, "caption": caption} for item, caption in done]
    return json.dumps(results, indent=1, ensure_ascii=False) + "\n"


def key_of(item: Item) -> str:
    """What an item is called in the record: image ids may be numbers."""
    return str(item.id)


class Captioned:
    """The captions of one file of results: a line each in a record beside it, to which several shards append."""

    def __init__(self, out: Path) -> None:
        self.out, self._lines = out, Lines(out.with_name(f"{out.name}.record.jsonl"), "a record of captions")

    def captions(self) -> dict[str, str]:
        found = (entry for _, entry in self._lines.read() if entry)
        return {str(one.get("clip")): one["caption"] for one in found if isinstance(one.get("caption"), str)}

    def make(
        self,
        items: list[Item],
        caption: Callable[[Path, int], str],
        seed: int,
        outcome: Outcome,
        note: Callable[[str], object],
    ) -> None:
        """Caption what is not captioned yet."""
        known = self.captions()

        def make(item: Item) -> None:
            if item.clip is None:
                raise UniViGUError(f"{key_of(item)}: found no clip of this name in the folder of clips")
            drawn = seed_of(seed, key_of(item))
            if not (text := caption(item.clip, drawn)).strip():
                raise UniViGUError(f"{item.clip}: the caption came out empty; try another seed or more steps")
            self._lines.add({"clip": key_of(item), "seed": drawn, "caption": text})

        for place, item in enumerate(items, 1):
            if key_of(item) in known:
                outcome.there += 1
            else:
                note(f"[{place}/{len(items)}] {key_of(item)}")
                outcome.tried(key_of(item), partial(make, item))

    def write(self, form: str, items: list[Item]) -> dict[str, str]:
        """Write the results of all shards so far; the last one to end writes them all, whoever that is."""
        captions: dict[str, str] | None = None
        while (now := self.captions()) != captions:
            captions = now
            write_text(self.out, written_as(form, items, captions))
        return now


# What a run was


def require_same(path: Path, facts: Mapping[str, Any]) -> None:
    """Begin a report, or hold these settings against those that it was begun with. Raises UniViGUError, naming what
    differs: clips of two models in one folder would be nobody's numbers."""
    now = json.loads(json.dumps(facts))
    if write_new(path, _json(now)):
        return
    before = _parsed(path, _text(path))
    earlier = before.get("settings") if isinstance(before, dict) else None
    if not isinstance(earlier, dict):
        raise UniViGUError(f"{path}: not a report of this command; choose another name or folder with --out")
    settings = now["settings"]
    names = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
    if names:
        what = "; ".join(f"{one} was {shown(earlier.get(one))} and is {shown(settings.get(one))}" for one in names)
        raise UniViGUError(f"{path}: begun with other settings: {what}. Use those, or choose another --out")


def write_report(path: Path, facts: Mapping[str, Any]) -> None:
    write_text(path, _json(facts))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in find_clips(folder, recursive=False, stills=False):
        if path.stem in files:
            raise UniViGUError(f"{path}: found {files[path.stem].name}, too; expected one clip of each name")
        files[path.stem] = path
    return files


def _is_lines(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _text(path: Path) -> str:
    try:
        return read_text(path, most=_MOST, exact=path.suffix.lower() != ".txt")
    except FileNotFoundError:
        raise UniViGUError(f"{path}: no such file or folder; check the path") from None


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UniViGUError(f"{path}: cannot be read as JSON ({error}); restore the file") from None
