"""Clips and pictures, which PyAV reads, and tokenizers, which SentencePiece reads."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import torch
from PIL import Image

from mutants import NUMBERS, Parser, overwritten
from recipes.worlds.tokenizer import train_tokenizer
from uvg_core.config import RunConfig
from uvg_core.media.tokenizer import Tokenizer
from uvg_core.media.video import ClipSpec, probe, read_clip


def _clip(suffix: str, codec: str, layout: str, frames: int = 12):
    def make(folder: Path) -> Path:
        path = folder / f"clip{suffix}"
        noise = torch.Generator().manual_seed(1)
        with av.open(str(path), "w") as file:
            stream = file.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, layout
            for number in range(frames):
                pixels = torch.randint(256, (32, 48, 3), generator=noise, dtype=torch.uint8)
                frame = av.VideoFrame.from_ndarray(pixels.numpy(), "rgb24").reformat(format=layout)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path

    return make


def _read(path: Path) -> object:
    refused = None
    try:
        probe(path)
    except ValueError as error:  # read_clip says it too, or must cope with it
        refused = error
    clip = read_clip(path, ClipSpec(frames=5, height=32, width=32))
    assert clip.pixels.shape == (5, 32, 32, 3)
    return refused or clip.note


_BOXES = b"moov trak mdia minf stbl edts udta dinf mvex moof traf".split()


def _boxes(data: bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Numbers of an mp4: of every box the size, the name, and what is in it by fours and eights."""
    end = len(data) if end is None else end
    while at + 8 <= end:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size < 8:
            return
        yield at, at + 4
        yield at + 4, at + 8
        if kind in _BOXES:
            yield from _boxes(data, at + 8, at + size)
        elif kind != b"mdat":
            for field in range(at + 8, min(at + size, at + 120) - 3, 4):
                yield field, field + 4
                yield field, min(field + 8, at + size)
        at += size


_MASTERS = "1A45DFA3 18538067 1549A966 1654AE6B AE E0 1254C367 7373 67C8 1F43B675 1C53BB6B"
_ELEMENTS = {int(name, 16) for name in _MASTERS.split()}


def _elements(data: bytes, at: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Sizes and contents of Matroska's elements."""
    end = len(data) if end is None else end
    while at + 2 <= end:
        name = 9 - data[at].bit_length()
        width = 9 - data[min(at + name, end - 1)].bit_length()
        begin = at + name + width
        size = int.from_bytes(data[at + name : begin], "big") & ((1 << 7 * width) - 1)
        yield at + name, begin
        if int.from_bytes(data[at : at + name], "big") in _ELEMENTS:
            yield from _elements(data, begin, min(begin + size, end))
        elif size:
            yield begin, min(begin + size, begin + 40)
        at = begin + size


def _lie(spans):
    def lie(data: bytes, random: Random) -> bytes:
        fields = [(begin, end) for begin, end in spans(data) if begin < end <= len(data)]
        for _ in range(random.choice([1, 1, 2, 5])):
            data = bytes(overwritten(data, fields, random))
        return data

    return lie


def _heads(data: bytes) -> Iterator[tuple[int, int]]:
    """Numbers of one to eight bytes where a file begins, and around its end, where some keep an index."""
    for at in (*range(min(len(data) - 8, 1200)), *range(max(0, len(data) - 400), len(data) - 8)):
        yield from [(at, at + 1), (at, at + 2), (at, at + 4), (at, at + 8)]


def _lie_in_mkv(data: bytes, random: Random) -> bytes:
    at = data.find(b"00:00:00.")
    if at >= 0 and not random.randrange(3):
        lies = [b"inf:0:0", b"0:0:inf", b"0:0:nan", b"0:0:1e999", b"9" * 14 + b":0:0", b"-9:-9:-9", b"::", b"1e9:1:1"]
        return data[:at] + random.choice(lies).ljust(18, b"0")[:18] + data[at + 18 :]
    return _lie(_elements)(data, random)


def _gif_fields(data: bytes) -> Iterator[tuple[int, int]]:
    """The screen's size and flags; of every picture its place and size; delays."""
    yield from [(6, 8), (8, 10), (6, 10), (10, 11), (11, 12)]
    for at in range(13, len(data) - 10):
        if data[at] == 0x2C and data[at + 9] in (0, 0x87):
            yield from [(at + 1, at + 3), (at + 3, at + 5), (at + 5, at + 7), (at + 7, at + 9), (at + 5, at + 9)]
        if data[at : at + 3] == b"\x21\xf9\x04":
            yield from [(at + 3, at + 4), (at + 4, at + 6)]


def _lie_in_png(data: bytes, random: Random) -> bytes:
    """Chunks with right checksums and wrong contents, lengths, names or places."""
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = random.randrange(len(chunks)) if random.randrange(2) else 0
    name, inside = chunks[number]
    match random.randrange(5):
        case 0:
            chunks.insert(random.randrange(len(chunks) + 1), (name, inside))
        case 1 if name == b"IDAT":
            chunks[number] = name, zlib.compress(bytes(random.choice([0, 10**5, 2 * 10**8])))
        case 2 if name == b"IHDR":
            size = [random.choice(NUMBERS[:9]) % 2**31 for _ in range(2)]
            chunks[number] = name, struct.pack(">II", *size) + inside[8:]
        case _ if inside:
            spans = [(k, min(k + 4, len(inside))) for k in range(0, min(len(inside), 60), 4)]
            chunks[number] = name, bytes(overwritten(inside, spans, random))
    out = data[:8]
    for name, inside in chunks:
        out += struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))
    return out


def _animation(suffix: str):
    """Moving pictures with transparent parts, which Pillow reads."""

    def make(folder: Path) -> Path:
        frames = []
        for number in range(4):
            pixels = torch.randint(256, (32, 48, 4), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
            frames.append(Image.fromarray(pixels.numpy(), "RGBA"))
        frames[0].save(folder / f"clip{suffix}", save_all=True, append_images=frames[1:], duration=40)
        return folder / f"clip{suffix}"

    return make


def _make_tokenizer(folder: Path) -> Path:
    (folder / "spiece.model").write_bytes(train_tokenizer())
    return folder / "spiece.model"


def _read_tokenizer(path: Path) -> object:
    tokenizer = Tokenizer(path.read_bytes(), RunConfig())
    ids = tokenizer.ids("a red ring moves slowly, ünd 字 more")
    tokenizer.context(["a green star"])
    return tokenizer.text(ids), tokenizer.size


def _lie_in_tokenizer(data: bytes, random: Random) -> bytes:
    """The fields of the outermost message (pieces, settings) left out, doubled, or with numbers that lie."""
    fields, at = list[tuple[int, bytes]](), 0
    while at < len(data):
        tag, size, shift = data[at], 0, 0
        at += 1
        while True:
            size |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if not data[at - 1] & 128:
                break
        fields.append((tag, data[at : at + size]))
        at += size
    for _ in range(random.choice([1, 3, 20])):
        # The last two are the settings of training and normalising.
        number = random.randrange(len(fields)) if random.randrange(2) else len(fields) - random.choice([1, 2])
        tag, inside = fields[number]
        match random.randrange(6):
            case 0:
                fields[number] = tag, b""
            case 1:
                fields.append(fields[number])
            case 2:
                fields[number] = tag, b"\x0a" + bytes([min(len(inside), 100)]) + random.randbytes(100)
            case _ if inside:
                spans = [(k, min(k + 4, len(inside))) for k in range(min(len(inside), 200))]
                fields[number] = tag, bytes(overwritten(inside, spans, random))
    return b"".join(bytes([tag]) + _varint(len(inside)) + inside for tag, inside in fields)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


PARSERS = {
    "clip, mp4": Parser(_clip(".mp4", "libx264", "yuv420p"), _read, _lie(_boxes)),
    "clip, mkv": Parser(_clip(".mkv", "libx264", "yuv420p"), _read, _lie_in_mkv),
    "picture, gif": Parser(_clip(".gif", "gif", "rgb8"), _read, _lie(_gif_fields)),
    "picture, png": Parser(_clip(".apng", "apng", "rgb24", 1), _read, _lie_in_png),
    **{
        f"clip, {suffix}": Parser(_clip(f".{suffix}", codec, "yuv420p"), _read, _lie(_heads))
        for suffix, codec in [
            ("avi", "mpeg4"),
            ("ts", "libx264"),
            ("flv", "flv1"),
            ("mpg", "mpeg2video"),
            ("wmv", "wmv2"),
            ("mxf", "mpeg2video"),
            ("webm", "libvpx"),
            ("h264", "libx264"),
        ]
    },
    "picture, webp": Parser(_animation(".webp"), _read, _lie(_heads)),
    "picture, avif": Parser(_animation(".avif"), _read, _lie(_heads)),
    "picture, jpg": Parser(_clip(".mjpeg", "mjpeg", "yuvj420p", 1), _read, _lie(_heads)),
    "tokenizer": Parser(_make_tokenizer, _read_tokenizer, _lie_in_tokenizer),
}
