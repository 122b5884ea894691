"""Manifests of clips, and shards of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from random import Random

import torch

from mutants import NUMBERS, TEXTS, Parser, wrong
from uvg_core.config import RunConfig
from uvg_core.data.folder import TextLimits, survey
from uvg_core.media.video import write_video

RUN = RunConfig(height=16, width=16, frames=5, fps=8.0, text_length=64, context_length=64)


def _clip(folder: Path) -> Path:
    write_video(folder / "b.mp4", torch.zeros(8, 16, 16, 3, dtype=torch.uint8), 8.0)
    return folder / "b.mp4"


def _read(path: Path) -> object:
    found = survey(path, RUN, lambda text: [*range(len(text) % 64)], limits=TextLimits((0, 64), (0, 64)))
    return [found.item(index) for index in range(min(2, len(found)))], str(found)


def _make_lines(folder: Path) -> Path:
    _clip(folder)
    rows = [{"path": "b.mp4", "caption": "a", "start": 0.1, "end": 1}, {"file_name": "b.mp4", "text": ["a", "b"]}]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


def _lie_in_lines(data: bytes, random: Random) -> bytes:
    rows = [json.dumps(wrong(json.loads(line), random)) for line in data.decode().splitlines()]
    return "\n".join(rows).encode("utf-8", "backslashreplace")


def _make_table(folder: Path) -> Path:
    _clip(folder)
    (folder / "clips.csv").write_text('path,caption,start,end\nb.mp4,"a, b",0.1,1\nb.mp4,c,,\n')
    return folder / "clips.csv"


def _lie_in_table(data: bytes, random: Random) -> bytes:
    cells = [line.split(",") for line in data.decode().splitlines()]
    row = random.choice(cells[random.randrange(2) :])
    row[random.randrange(len(row))] = random.choice([*TEXTS, *map(str, NUMBERS), '"'])
    return "\n".join(map(",".join, cells)).encode("utf-8", "backslashreplace")


def _make_shard(folder: Path) -> Path:
    files = {"1.mp4": _clip(folder).read_bytes(), "1.txt": b"a b", "2.json": b'{"caption": "c"}'}
    with tarfile.open(folder / "clips.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in {**files, "2.mp4": files["1.mp4"]}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder / "clips.tar"


def _lie_in_shard(data: bytes, random: Random) -> bytes:
    """A member's header with another size, kind or name, its checksum right."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = random.choice(tar.getmembers())
        offset = member.offset
    member.size = random.choice([member.size, *(number for number in NUMBERS if number < 2**62)])
    member.type = random.choice(
        [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.SYMTYPE, b"S", b"g"]
    )
    member.name = random.choice([member.name, "../../etc/x.mp4", "/etc/passwd.mp4", "1.mp4", ".mp4", "a" * 90])
    header = member.tobuf(tarfile.GNU_FORMAT)[-512:]
    return data[:offset] + header + data[offset + 512 :]


PARSERS = {
    "manifests of lines": Parser(_make_lines, _read, _lie_in_lines),
    "manifests that are tables": Parser(_make_table, _read, _lie_in_table),
    "shards of clips": Parser(_make_shard, _read, _lie_in_shard),
}
