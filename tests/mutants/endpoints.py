"""What an endpoint answers, and the texts and the record of a data set from prompts."""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random

from mutants import NUMBERS, TEXTS, Parser, wrong, wrong_json
from uvg_core.errors import UniViGUError
from uvg_core.synthesis.captioner import Captioner
from uvg_core.synthesis.chat import ChatClient
from uvg_core.synthesis.engine import plan, read_prompts
from uvg_core.synthesis.record import Record
from uvg_core.synthesis.settings import Chat

_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "a red circle moves"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4},
}
_HEAD = "HTTP/1.1 {} X\r\n{}: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
_HEADERS = ["Retry-After", "Content-Encoding", "Transfer-Encoding", "Content-Length", "Location", "Set-Cookie", "X"]


@cache
def _client(path: Path) -> ChatClient:
    """A client of a server that answers what lies in a file, whatever it is asked."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.settimeout(5)
                heard = b""
                while not heard.endswith(b"}"):  # of the request's JSON
                    heard += connection.recv(65536)
                connection.sendall(path.read_bytes())
                connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=serve, daemon=True).start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    client = ChatClient(Chat(endpoint=address, llm="m", retries=1, llm_timeout=5.0), sleep=lambda _: None)
    atexit.register(listening.close)
    return client


def _read_answer(path: Path) -> object:
    captioner = Captioner(_client(path), lambda text: len(text.split()) + 1, (2, 1000))
    captioner._opening = lambda prompt, *_: [{"role": "user", "content": prompt}] * 2  # type: ignore[method-assign]
    return captioner.caption("a red circle", path)


def _answer(status: object, header: str, value: object, body: bytes) -> bytes:
    return _HEAD.format(status, header, value, len(body)).encode("utf-8", "surrogatepass") + body


def _make_answer(folder: Path) -> Path:
    (folder / "answer").write_bytes(_answer(200, "Server", "some", json.dumps(_CHAT).encode()))
    return folder / "answer"


def _wrong_answer(data: bytes, random: Random) -> bytes:
    """Sound HTTP; JSON, status or a header that lies."""
    body = data.partition(b"\r\n\r\n")[2]
    status, header, value = 200, "Server", "some"
    if random.randrange(3):
        body = wrong_json(body, random)
    if random.randrange(2):
        status = random.choice([200, 204, 301, 307, 400, 401, 402, 404, 413, 429, 500, 503, 999])
    if not random.randrange(3):
        header = random.choice(_HEADERS)
        value = random.choice([*map(str, NUMBERS), *TEXTS, "gzip", "br", "chunked", "http://127.0.0.1:1/"])
        value = value.replace("\ud800", "\ufffd")
    return _answer(status, header, value, body)


def _make_cached(folder: Path) -> Path:
    (folder / "cached.json").write_text(json.dumps({"text": "a red circle moves", "cut": False}))
    return folder / "cached.json"


def _read_cached(path: Path) -> object:
    """A kept answer; one that cannot be read is asked for anew, which fails here."""
    client = _client(path)
    client.cache = path.parent
    client._entry = lambda cache, messages: path  # type: ignore[method-assign]
    return client.answer([{"role": "user", "content": "?"}])


def _make_prompts(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("# some\na red circle\nein grüner Kreis\n빨간 원\n\na red circle\n")
    return folder / "prompts.txt"


def _wrong_prompts(data: bytes, random: Random) -> bytes:
    lines = data.decode().splitlines()
    lines[random.randrange(len(lines))] += random.choice(TEXTS) * random.choice([1, 1, 30])
    text = random.choice(["\n", "\r\n", "\r", "\u2028", "\x85"]).join(lines) * random.choice([1, 1, 3])
    encoding = random.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "shift-jis"])
    return text.encode(encoding, random.choice(["ignore", "backslashreplace"]))


def _make_record(folder: Path) -> Path:
    out, number = folder / "out", 0
    out.mkdir()
    lines = [{"version": 2}, {"generator": {"model": "m", "steps": 4}}, {"captioner": {"llm": "m", "tokens": [1, 2]}}]
    for number, prompt in enumerate(("a red circle", "ein grüner Kreis")):
        clip = {"clip": f"clip-{number}", "prompt": prompt, "seed": number}
        lines += [clip, clip | {"frames": 5, "generator": 0, "captioner": 0, "answers": 1, "caption_sha256": "0" * 64}]
    (out / "synthesis.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return out / "synthesis.jsonl"


def _wrong_lines(data: bytes, random: Random) -> bytes:
    lines = wrong([json.loads(line) for line in data.splitlines()], random)
    lines = lines if isinstance(lines, list) else [lines]
    return "\n".join([*map(json.dumps, lines), random.choice(["", "", "{"])]).encode()


def _make_earlier(folder: Path) -> Path:
    record = Record(_make_record(folder).parent)
    clips = {
        name: {"prompt": clip.prompt, "seed": 1, "frames": 5, "generator": 0} for name, clip in record.clips.items()
    }
    whole = {"version": 1, "generators": record.generators, "captioners": record.captioners, "clips": clips}
    record.path.unlink()
    (folder / "out" / "synthesis.json").write_text(json.dumps(whole))
    return folder / "out" / "synthesis.json"


def _read_record(path: Path) -> object:
    """As a run does: read, compared with the settings in use, appended to and read again."""
    if path.suffix == ".json":
        path.with_suffix(".jsonl").unlink(missing_ok=True)
    record = Record(path.parent)
    with suppress(UniViGUError):
        record.require_same({"model": "m", "steps": 4}, {"llm": "m", "tokens": [1, 2]})
    for name, clip in list(record.clips.items()):
        record.keep(name, clip)
    record.place("generator", {"model": "m", "steps": 5})
    again = Record(path.parent)
    # NaN is like nothing, itself included.
    assert repr((again.clips, again.generators)) == repr((record.clips, record.generators))
    return os.path.getsize(record.path)


PARSERS = {
    "endpoint's answer": Parser(_make_answer, _read_answer, _wrong_answer, ("socket.connect",)),
    "kept answer": Parser(_make_cached, _read_cached, wrong_json, ("socket.connect",)),
    "prompts": Parser(_make_prompts, lambda path: plan(read_prompts(path)[0], 2, 0), _wrong_prompts),
    "synthesis.jsonl": Parser(_make_record, _read_record, _wrong_lines),
    "synthesis.json": Parser(_make_earlier, _read_record, wrong_json),
}
