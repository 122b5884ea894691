"""What a server can do to a client, and who sees the key."""

from __future__ import annotations

import gzip
import json
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_server import raw_server

from uvg_core.errors import UniViGUError
from uvg_core.synthesis import endpoint as module
from uvg_core.synthesis.chat import Answer, ChatClient
from uvg_core.synthesis.endpoint import DEEPEST, MOST_BYTES, CaptionError, ChatError, Endpoint, EndpointError
from uvg_core.synthesis.settings import Chat

pytest.importorskip("httpx")

KEY = "sk-very-secret"
QUESTION = [{"role": "user", "content": "?"}]
GOOD = json.dumps({"choices": [{"message": {"content": "a red circle"}, "finish_reason": "stop"}]}).encode()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "OPENAI_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def response(body: bytes, status: int = 200, **headers: str) -> bytes:
    named = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def ask(url: str, **chat: Any) -> Answer:
    """One question to a server, without a second try."""
    client = ChatClient(Chat(**{"endpoint": url, "llm": "m", "retries": 0, "llm_timeout": 5.0, **chat}))
    try:
        return client.answer(QUESTION)
    finally:
        client.close()


def answer_to(received: bytes, **chat: Any) -> Answer:
    with raw_server(lambda connection: connection.sendall(received)) as server:
        return ask(server.url, **chat)


# Time, bytes, depth


def dripped(pieces: Iterator[bytes], connection: socket.socket) -> None:
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"],
    ids=["header", "body", "until it closes"],
)
def test_an_answer_that_drips_is_given_up_in_time(start: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        dripped(iter([start] + [b" "] * 600), connection)

    with raw_server(drip) as server:
        started = time.monotonic()
        with pytest.raises(CaptionError, match=r"it timed out after 0\.4 s"):
            ask(server.url, llm_timeout=0.4)
        assert time.monotonic() - started < 3


def test_a_server_that_reads_slowly_is_given_up_in_time() -> None:
    """A request larger than the buffers of the connection."""
    listening = socket.create_server(("127.0.0.1", 0))
    endpoint = Endpoint(Chat(endpoint=f"http://127.0.0.1:{listening.getsockname()[1]}", llm="m", llm_timeout=0.4))
    started = time.monotonic()
    with pytest.raises(CaptionError, match="it timed out"):
        endpoint.post({"pictures": "x" * 30_000_000})
    assert time.monotonic() - started < 3
    endpoint.close()
    listening.close()


def test_more_than_the_bound_is_cut_off() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
        while True:
            connection.sendall(b" " * 65536)

    with raw_server(endless) as server, pytest.raises(CaptionError, match="answered 200 with more than 8 MB"):
        ask(server.url)


@pytest.mark.parametrize("packed", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_compressed_bomb_takes_no_memory(packed: Any) -> None:
    bomb = packed(b" " * (20 * MOST_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(CaptionError, match="more than 8 MB"):
            answer_to(response(bomb, Content_Encoding="gzip"))
        assert tracemalloc.get_traced_memory()[1] < 5 * MOST_BYTES
    finally:
        tracemalloc.stop()


def test_encodings_of_answers() -> None:
    assert answer_to(response(gzip.compress(GOOD), Content_Encoding="gzip")).text == "a red circle"
    assert answer_to(response(zlib.compress(GOOD), Content_Encoding="deflate")).text == "a red circle"
    for name in ("br", "zstd", "gzip, gzip"):
        with pytest.raises(CaptionError, match=r"in the encoding .* which was not asked for"):
            answer_to(response(GOOD, Content_Encoding=name))
    with pytest.raises(CaptionError, match="did not answer"):
        answer_to(response(GOOD, Content_Encoding="gzip"))


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("levels", [DEEPEST + 1, 900, 100_000])
def test_deep_json_is_worded(levels: int, status: int) -> None:
    for opening, closing in (("[", "]"), ('{"error":', "}")):
        with pytest.raises(CaptionError) as caught:
            answer_to(response(f"{opening * levels}1{closing * levels}".encode(), status))
        assert len(str(caught.value)) < 800
        if levels < 1000 and status == 200:
            assert f"JSON of more than {DEEPEST} levels" in str(caught.value)


@pytest.mark.parametrize(
    "received",
    [
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        response(GOOD, Content_Length="5000"),
        response(GOOD, Content_Length="x"),
        response(GOOD, Transfer_Encoding="chunked"),
        response(b"\xff\xfe{}"),
        response(b'"\xff"'),
        response(b"1" * 6000),
        response(json.dumps({"choices": [{"message": {"content": "y" * (2**20 + 1)}}]}).encode()),
        response(b'{"choices": {"0": 1}}'),
        response(b'{"choices": [{"message": {"content": {"text": "x"}}}]}'),
        response(b'{"choices": [{"message": {"content": [[]], "refusal": 7}}]}'),
        response(b"", 503, Retry_After="Mon, 99 Foo 99999 99:99:99 +9999"),
        response(b"", 429, Retry_After="1e999"),
        response(b"", 999),
        response(b"", 204),
    ],
)
def test_bad_answers_are_worded_as_one_clip_s_failure(received: bytes) -> None:
    with pytest.raises(CaptionError, match=r"127\.0\.0\.1|'m'") as caught:
        answer_to(received)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "cookie", ["a=b; Path=/", "a=b; Path=/\u0627", "\xff=\xfe", "a=b; Max-Age=1e999", "a=" + "x" * 60_000]
)
def test_a_cookie_is_neither_kept_nor_sent(cookie: str) -> None:
    """One with letters beyond ASCII would make every later request fail."""
    answer = response(GOOD).replace(b"\r\n", b"\r\nSet-Cookie: " + cookie.encode() + b"\r\n", 1)
    with raw_server(lambda connection: connection.sendall(answer)) as server:
        client = ChatClient(Chat(endpoint=server.url, llm="m"))
        assert client.answer(QUESTION).text == client.answer(QUESTION).text == "a red circle"
        assert b"cookie" not in server.heard[1].lower()
        client.close()


def test_halves_of_surrogate_pairs_are_sent_as_json_can() -> None:
    with raw_server(lambda connection: connection.sendall(response(GOOD))) as server:
        client = ChatClient(Chat(endpoint=server.url, llm="m"))
        assert client.answer([{"role": "user", "content": "caf\udce9"}]).text == "a red circle"
        assert rb"caf\udce9" in server.heard[0]
        client.close()


# The key


def chat(url: str, name: str | None = None) -> Chat:
    return Chat(endpoint=url, llm="m", api_key_env=name, llm_timeout=5.0)


def test_the_usual_key_goes_to_its_own_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Endpoint(chat("https://api.openai.com/v1")).key == Endpoint(chat("https://API.openai.com:443/v1")).key == KEY
    for url in (
        "http://api.openai.com/v1",
        "https://api.openai.com.elsewhere.example/v1",
        "https://elsewhere.example/api.openai.com",
        "https://elsewhere.example/v1?host=api.openai.com",
        "http://127.0.0.1:8000/v1",
        "http://localhost:8000/v1",
    ):
        endpoint = Endpoint(chat(url))
        assert endpoint.key == ""
        assert "OPENAI_API_KEY was not sent" in endpoint.keyless
        assert KEY not in repr(endpoint._client.headers)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://elsewhere.example/v1", True),
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:8000/v1", True),
        ("http://192.168.1.7/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://[fd00::7]/v1", True),
        ("http://[::ffff:10.0.0.7]/v1", True),
        ("http://8.8.8.8/v1", False),
        ("http://172.32.0.1/v1", False),
        ("http://[2001:4860:4860::8888]/v1", False),
        ("http://[::ffff:8.8.8.8]/v1", False),
        ("http://gpu-box/v1", True),
        ("http://half.example/v1", False),
        ("http://outside.example/v1", False),
    ],
)
def test_a_named_key_goes_to_its_endpoint(url: str, sent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"gpu-box": ["192.168.0.9"], "half.example": ["10.0.0.1", "8.8.8.8"], "outside.example": ["8.8.8.8"]}
    monkeypatch.setattr(
        module.socket, "getaddrinfo", lambda host, port: [(0, 0, 0, "", (ip, 0)) for ip in names.get(host, [host])]
    )
    monkeypatch.setenv("SOME_KEY", KEY)
    if sent:
        assert Endpoint(chat(url, "SOME_KEY")).key == KEY
    else:
        with pytest.raises(UniViGUError, match=r"the key in SOME_KEY would go to .* over plain http") as caught:
            Endpoint(chat(url, "SOME_KEY"))
        assert KEY not in str(caught.value)


def test_a_name_that_leads_elsewhere_by_then_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with raw_server(lambda connection: connection.sendall(response(GOOD))) as server:
        client = ChatClient(chat(server.url, "SOME_KEY"))
        assert client.answer(QUESTION).text == "a red circle"
        assert f"Authorization: Bearer {KEY}".encode() in server.heard[0]
        monkeypatch.setattr(module, "_is_own", lambda address: False)
        with pytest.raises(EndpointError, match="over plain http"):
            client.answer(QUESTION)
        assert len(server.heard) == 1
        client.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with (
        raw_server(lambda connection: connection.sendall(response(GOOD))) as elsewhere,
        raw_server(lambda c: c.sendall(response(b"", status, Location=f"{elsewhere.url}/v1"))) as server,
        pytest.raises(EndpointError, match=f"answered {status}; check the address"),
    ):
        ask(server.url, api_key_env="SOME_KEY")
    assert elsewhere.heard == []


def test_a_proxy_does_not_see_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with (
        raw_server(lambda connection: connection.sendall(response(b"", 502))) as proxy,
        raw_server(lambda connection: connection.sendall(response(GOOD))) as server,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert ask(server.url, api_key_env="SOME_KEY").text == "a red circle"
        assert proxy.heard == []
        with pytest.raises(ChatError):
            ask("https://elsewhere.example/v1", api_key_env="SOME_KEY")
        assert proxy.heard[0].startswith(b"CONNECT elsewhere.example:443")
        assert KEY.encode() not in b"".join(proxy.heard)


def test_no_other_credentials_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\ndefault login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with raw_server(lambda connection: connection.sendall(response(GOOD))) as server:
        ask(server.url)
        assert b"authorization" not in server.heard[0].lower()


# What is shown


@pytest.mark.parametrize(
    "url",
    [
        "me:hunter2@host/v1",
        "ftp://me:hunter2@host/v1",
        "http://me:hunter2@/v1",
        "http://me:hunter2@host:port/v1",
        "http://me:hunter2@[::1/v1",
        "http://me:hunter2＠host℀/v1",
        "http://me:hunter2@host\x07/v1",
        "//me:hunter2@host",
        "host/v1?key=hunter2",
        "http:///v1?key=hunter2",
        "http://host:99999/v1?key=hunter2",
        "http://host\udcff/v1?key=hunter2",
        "http://ho\x07st/v1?key=hunter2#hunter2",
        "http://" + "h" * 70_000 + "/v1?key=hunter2",
        "https://host/v1?key=" + "hunter2" * 20_000,
        "http://me%3Ahunter2%40host/v1",
    ],
)
def test_secrets_of_an_address_are_not_shown(url: str) -> None:
    with pytest.raises(UniViGUError) as caught:
        Endpoint(chat(url))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UniViGUError) as caught:
        ChatClient(Chat(endpoint=url))
    assert "hunter2" not in str(caught.value)


def test_a_query_that_the_server_repeats_is_not_shown() -> None:
    def repeat(connection: socket.socket) -> None:
        connection.sendall(response(b"no /v1/chat/completions?key=hunter2&a=1 (hunter2)", 400))

    with raw_server(repeat) as server, pytest.raises(CaptionError, match=r"no /v1/chat/completions\?\*\*\*") as caught:
        ask(f"{server.url}/v1?key=hunter2&a=1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["http://me:hunter2@host:port", "odd://me:hunter2@host", "http://me:hunter2@[::1"])
def test_a_proxy_that_cannot_be_used_is_not_shown(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UniViGUError, match="the proxy settings of the environment") as caught:
        Endpoint(chat("https://host/v1"))
    assert "hunter2" not in str(caught.value)
