"""A chat endpoint: its address, who may see the key, and requests whose answers are bounded in time and size."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import threading
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from ..errors import UniViGUError, WrongUsage
from .settings import KEY_NAME, Chat

KEY_HOST = "api.openai.com"  # what KEY_NAME is for, unless --api-key-env names it together with another endpoint
LONGEST_CONNECT = 15.0  # seconds; a model may think for minutes, a connection stands or does not
MOST_BYTES = 8 * 2**20  # of an answer, as sent and uncompressed; a caption has a few kB
DEEPEST = 64  # levels of an answer's JSON; a chat completion has five

# Private networks (RFC 1918, 4193) and links (RFC 3927, 4291): plain http does not leave what is one's own there.
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
_SHORTEST_SECRET = 6  # of a query's values; shorter ones are words like "1" or "true"


class ChatError(UniViGUError):
    """No answer. ``passing``: worth another try, after ``wait`` seconds where the server asks for that."""

    def __init__(self, message: str, *, passing: bool = False, wait: float | None = None) -> None:
        super().__init__(message)
        self.passing, self.wait = passing, wait


class CaptionError(ChatError):
    """This clip got no caption; another may."""


class EndpointError(ChatError):
    """No clip will get a caption before the user puts something right."""


@dataclass(frozen=True)
class Reply:
    """What came back, whole. ``data``: its JSON, or its text where it is no JSON (``problem`` says so in words)."""

    status: int
    retry_after: str
    text: str
    data: Any
    problem: str = ""

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300


class Endpoint:
    """Where requests go, and with which key.

    ``OPENAI_API_KEY`` goes to ``https://api.openai.com`` alone. A key that ``--api-key-env`` names goes to the endpoint
    it is named together with: over https, or over http to this machine or one of its private network, where it is
    checked whom the connection reached. Redirects are not followed, and no other credentials are sent.

    ``key`` is empty where none is sent, and ``keyless`` says why. ``address`` is what messages show.

    Raises UniViGUError for an address or a key that cannot be used, and without httpx.
    """

    def __init__(self, chat: Chat) -> None:
        try:
            import httpx
        except ImportError as error:
            raise UniViGUError(
                f"captions from an endpoint need httpx, which cannot be imported ({error}): pip install httpx"
            ) from None
        self._httpx, self._seconds = httpx, chat.llm_timeout
        self._url = chat_address(chat.endpoint or "")
        parts = urlsplit(self._url)
        self.address = urlunsplit((*parts[:3], "", ""))  # a query may hold a secret
        try:
            url = httpx.URL(self._url)
        except (httpx.InvalidURL, ValueError) as error:
            raise UniViGUError(f"{self.address} cannot be used ({error}); check the address") from None
        self.key_name = chat.api_key_env or KEY_NAME
        self.key, self.keyless = _key_for(url.scheme, url.host, chat.api_key_env)
        in_query = [parts.query, *(value for _, value in parse_qsl(parts.query))]
        self._secrets = [self.key, *(secret for secret in in_query if len(secret) >= _SHORTEST_SECRET)]
        self._plain_key = bool(self.key) and url.scheme == "http"
        try:
            self._client = httpx.Client(
                headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {}),
                auth=lambda request: request,  # neither from .netrc nor from the address
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none are kept or sent
                follow_redirects=False,
                limits=httpx.Limits(max_keepalive_connections=0),  # a connection belongs to one request's deadline
                timeout=httpx.Timeout(self._seconds, connect=min(self._seconds, LONGEST_CONNECT)),
                trust_env=not self._plain_key,  # a proxy would read it
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:  # not shown: a proxy's address may hold a password
            why = f" ({error})" if isinstance(error, ImportError) else ""
            raise UniViGUError(
                f"{self.address} cannot be reached through the proxy settings of the environment{why}; check the "
                "variables HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            ) from None

    def close(self) -> None:
        self._client.close()

    def post(self, body: Mapping[str, Any]) -> Reply:
        """Send JSON and read the answer, within ``--llm-timeout`` seconds in all and ``MOST_BYTES``.

        Raises EndpointError when the endpoint cannot be reached, CaptionError for a lost or unbounded answer."""
        httpx, content = self._httpx, json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        deadline = _Deadline(self._seconds, self._require_own if self._plain_key else lambda _: None)
        try:
            with (
                deadline,
                self._client.stream(
                    "POST", self._url, content=content, headers=headers, extensions={"trace": deadline.trace}
                ) as answer,
            ):
                received, wait = self._received(answer), answer.headers.get("retry-after", "")
        except (httpx.RequestError, httpx.StreamError, httpx.InvalidURL, OSError, zlib.error) as error:
            self._lost(error, deadline.over)
        if deadline.over:  # an answer that lasts until the connection closes looks whole when it is cut
            self._lost(TimeoutError(), True)
        return _parsed(answer.status_code, wait, received)

    def shown(self, text: str) -> str:
        """One line for a message, without the secrets, which some servers repeat."""
        line = " ".join(text.split())
        for secret in filter(None, self._secrets):
            line = line.replace(secret, "***")
        return line if len(line) <= 300 else f"{line[:299]}…"

    def _received(self, answer: Any) -> bytes:
        """The body. It is unpacked here: httpx would unpack each piece as a whole, a thousand times its size."""
        coding = answer.headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise CaptionError(
                f"{self.address} answered in the encoding {self.shown(coding)!r}, which was not asked for; expected "
                "plain JSON"
            )
        unpacker = None if coding in ("", "identity") else zlib.decompressobj(32 + zlib.MAX_WBITS)
        sent, found = 0, bytearray()
        for piece in answer.iter_raw():
            sent += len(piece)
            found += unpacker.decompress(piece, MOST_BYTES + 1 - len(found)) if unpacker else piece
            if max(sent, len(found)) > MOST_BYTES:
                raise CaptionError(
                    f"{self.address} answered {answer.status_code} with more than {MOST_BYTES >> 20} MB, and was cut "
                    "off; expected a chat completion of a few kB"
                )
        return bytes(found)

    def _lost(self, error: Exception, late: bool) -> NoReturn:
        httpx = self._httpx
        if late or isinstance(error, httpx.TimeoutException):
            found = f"it timed out after {self._seconds:g} s"
        else:
            found = self.shown(str(error)) or type(error).__name__
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            how = "start the server, or check the address and the network"
            raise EndpointError(f"{self.address} cannot be reached ({found}); {how}", passing=True) from None
        how = "--llm-timeout gives it more time"
        raise CaptionError(f"{self.address} did not answer ({found}); {how}", passing=True) from None

    def _require_own(self, peer: str) -> None:
        """Before anything is sent: a name may lead elsewhere than it did when it was checked."""
        if not _is_own(peer):
            raise EndpointError(_exposed(self.key_name, urlsplit(self._url).hostname or ""))


class _Deadline:
    """Shuts the connection of one request down when its time is over, whatever the server does: httpx's own limits
    begin anew with every byte. ``check`` is called with the peer's address before anything is sent to it."""

    def __init__(self, seconds: float, check: Callable[[str], object]) -> None:
        self.over = False
        self._check, self._open = check, list[socket.socket]()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore's ``trace`` extension."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            connection = info["return_value"].get_extra_info("socket")
            try:
                self._check(connection.getpeername()[0])
            except BaseException:
                info["return_value"].close()
                raise
            self._open.append(connection)
            if self.over:
                self._end()

    def _end(self) -> None:
        self.over = True
        for connection in self._open:
            with suppress(OSError):  # of the socket below TLS: what waits there in another thread wakes up
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def chat_address(url: str) -> str:
    """The address of an endpoint's chat completions, from its base or from itself; a query stays where it is.

    Raises WrongUsage for what is no http address, and for one that holds a name or a password."""
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or "%"
        plain = "%" not in host or ":" in host  # of addresses as fe80::1%eth0
        usable = parts.scheme in ("http", "https") and parts.port != 0 and plain
        named = parts.username is not None
    except ValueError:
        usable = named = False
    if named:  # not shown: it may hold a password
        raise WrongUsage("the endpoint's address contains a user name; pass the key with --api-key-env instead")
    if not usable:
        found = repr(url) if re.fullmatch(r"[A-Za-z0-9.:/_\[\]-]*", url) else "the address given"  # it may hold secrets
        raise WrongUsage(f"{found} is not a valid endpoint; expected an address like http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def require_key(chat: Chat) -> None:
    """Raise WrongUsage for an address that is none, and for a key that is named and cannot go there."""
    parts = urlsplit(chat_address(chat.endpoint or ""))
    if chat.api_key_env:
        _key_for(parts.scheme, parts.hostname or "", chat.api_key_env)


def _key_for(scheme: str, host: str, named: str | None) -> tuple[str, str]:
    """The key that goes to a host, or why none does. Raises WrongUsage for a key that is named and cannot go."""
    name = named or KEY_NAME
    key = os.environ.get(name, "").strip()
    if not key and named:
        raise WrongUsage(f"the environment variable {name} is not set; put the endpoint's key there")
    if not key:
        return "", f"{name} is not set, so no key was sent; set that environment variable"
    if not named and (scheme, host.lower()) != ("https", KEY_HOST):
        return (
            "",
            f"{name} was not sent, because it is sent to https://{KEY_HOST} only; to send it here, pass --api-key-env "
            f"{name}",
        )
    if not (key.isascii() and key.isprintable()):
        raise WrongUsage(f"the key in {name} contains characters that cannot be part of a key; set it again")
    if scheme == "http":
        with suppress(OSError, UnicodeError):  # a name that is not found cannot be reached either
            if not all(_is_own(str(found[4][0])) for found in socket.getaddrinfo(host, None)):
                raise WrongUsage(_exposed(name, host))
    return key, ""


def _exposed(name: str, host: str) -> str:
    return (
        f"the key in {name} would go to {host} over plain http, where others can read it; use an https address "
        "(http is allowed for this machine and its private network only)"
    )


def _is_own(address: str) -> bool:
    """Whether an IP address is this machine's or one of a private network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    private = any(found in network for network in map(ipaddress.ip_network, _PRIVATE))
    return private or found.is_loopback or found.is_unspecified


def _parsed(status: int, wait: str, received: bytes) -> Reply:
    """The answer as JSON where it is some, of a depth that nothing stumbles over."""
    text = received.decode("utf-8", "replace")
    try:
        data = json.loads(received)
    except (ValueError, RecursionError):  # a proxy's page, or nothing
        return Reply(status, wait, text, text, "not JSON")
    level = [data]
    for _ in range(DEEPEST):
        level = [child for one in level for child in _children(one)]
        if not level:
            return Reply(status, wait, text, data)
    return Reply(status, wait, text, text, f"JSON of more than {DEEPEST} levels")


def _children(one: Any) -> list[Any]:
    return list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else []
