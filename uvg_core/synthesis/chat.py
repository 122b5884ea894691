"""A client of any OpenAI-compatible ``/chat/completions``: one request, one answer, with retries and answers kept on
disk."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from ..errors import UniViGUError
from ..io import make_folder, write_text

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from try to try
LONGEST_ASKED_WAIT = 300.0  # a Retry-After beyond this ends the run: it can be taken up again then
LONGEST_CONNECT = 15.0  # seconds; a model may think for minutes, a connection stands or does not

_AGAIN = (408, 409, 425, 429)
_FOR_EVERY_CLIP = (401, 402, 404, 405)
_RESERVED = ("model", "messages", "stream", "n")
# Reasoning that servers without a parser for it leave in front of the answer.
# Some templates hold its first tag back; an answer that was cut off may lack the last.
_THINKING = re.compile(r"\A(?:.*?</think(?:ing)?>|\s*<think(?:ing)?>.*)", re.DOTALL)


class CaptionError(UniViGUError):
    """This clip got no caption; another may."""


class LengthError(CaptionError):
    """The model answered, but never within the limits."""


class EndpointError(UniViGUError):
    """No clip will get a caption before the user puts something right."""


class _Passing(Exception):
    """Worth another try. ``wait`` is what the server asks for, in seconds; ``last`` what to raise when tries are up."""

    def __init__(self, last: UniViGUError, wait: float | None = None) -> None:
        super().__init__(str(last))
        self.last, self.wait = last, wait


@dataclass(frozen=True)
class Answer:
    """What the model wrote, stripped, and whether the server cut it off."""

    text: str
    cut: bool


class ChatClient:
    """One endpoint and one model.

    Args:
        url: the endpoint's base, e.g. ``http://127.0.0.1:8000/v1``, or the whole address of its chat completions.
        model: as the endpoint names it.
        key: sent as a bearer token; None sends none. Never written, never part of a message. ``key_name``: the
            environment variable it came from, for messages.
        options: further entries of every request, e.g. ``{"temperature": 0.7}``.
        cache: folder of answers, made if missing; None keeps none.
        timeout: seconds that an answer may take. retries: tries after the first, for failures that may pass.
        note: called with one line before each wait. sleep: called with seconds.

    Raises UniViGUError at once for an address, a key, options or a cache that cannot be used, or without httpx.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        key_name: str = "OPENAI_API_KEY",
        options: Mapping[str, Any] | None = None,
        cache: Path | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        note: Callable[[str], object] = lambda _: None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise UniViGUError(
                f"captions from an endpoint need httpx, which does not import ({error}): pip install httpx"
            ) from None
        self._httpx = httpx
        self._url = chat_address(url)
        # A query may hold a secret.
        self.address = urlunsplit((*urlsplit(self._url)[:3], "", ""))
        self.model, self.options, self.cache, self.retries = model, dict(options or {}), cache, retries
        self._key, self._key_name, self._note, self._sleep = (key or "").strip(), key_name, note, sleep
        taken = [name for name in _RESERVED if name in self.options]
        if taken:
            raise UniViGUError(f"the options of the request name {', '.join(taken)}, which this program sets itself")
        if not (self._key.isascii() and self._key.isprintable()):
            raise UniViGUError(f"the key in {key_name} holds characters that no key has; set it anew")
        if cache is not None:
            make_folder(cache, "choose another for the answers with --cache")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT))
        try:
            httpx.URL(self._url)
            self._client = httpx.Client(headers=headers, timeout=limits)
        except (httpx.InvalidURL, ValueError, ImportError) as error:  # the proxies of the environment count too
            raise UniViGUError(
                f"{self.address} cannot be used ({error}); check the address, and the variables HTTP_PROXY, "
                "HTTPS_PROXY and ALL_PROXY"
            ) from None

    def close(self) -> None:
        self._client.close()

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> Answer:
        """The answer to a conversation, from the cache where it is known.

        Raises CaptionError when the model refuses or the server fails on this conversation, EndpointError when it
        would fail on every one."""
        known = self._known(messages)
        if known is not None:
            return known
        for tried in range(self.retries + 1):
            try:
                return self._try(self._body(messages))
            except _Passing as trouble:
                if tried == self.retries:
                    times = f"tried {tried + 1} times" if tried else "tried once"
                    raise type(trouble.last)(f"{trouble.last} ({times})") from None
                wait = min(FIRST_WAIT * 2**tried, LONGEST_WAIT) if trouble.wait is None else trouble.wait
                self._note(f"{trouble}; trying again in {wait:.3g} s ({tried + 1} of {self.retries})")
                self._sleep(wait)
        raise AssertionError("the last try returns or raises")

    def remember(self, messages: Sequence[Mapping[str, Any]], answer: Answer) -> None:
        """Keep an answer for ``answer`` to find."""
        if self.cache is not None:
            write_text(self._entry(self.cache, messages), json.dumps(asdict(answer), ensure_ascii=False) + "\n")

    def _body(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.options, "model": self.model, "messages": list(messages)}

    def _entry(self, cache: Path, messages: Sequence[Mapping[str, Any]]) -> Path:
        """Named by everything that is sent, pictures included; the same model may move to another address."""
        sent = json.dumps(self._body(messages), sort_keys=True).encode()
        return cache / f"{hashlib.sha256(sent).hexdigest()}.json"

    def _known(self, messages: Sequence[Mapping[str, Any]]) -> Answer | None:
        entry = None if self.cache is None else self._entry(self.cache, messages)
        if entry is None or not entry.exists():
            return None
        try:
            found = Answer(**json.loads(entry.read_text("utf-8")))
            if not isinstance(found.text, str) or not isinstance(found.cut, bool):
                raise TypeError("entries of another type")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self._note(f"{entry}: cannot be read ({error}); asking anew")
            return None
        return found

    def _try(self, body: Mapping[str, Any]) -> Answer:
        httpx = self._httpx
        try:
            response = self._client.post(self._url, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise _Passing(
                EndpointError(
                    f"{self.address} cannot be reached ({error or type(error).__name__}); start the server, or check "
                    "the address and the network"
                )
            ) from None
        except httpx.RequestError as error:
            found = "it timed out" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
            raise _Passing(
                CaptionError(f"{self.address} gave no answer ({found}); --llm-timeout gives it more time")
            ) from None
        if not response.is_success:
            self._refused(response)
        try:
            data = response.json()
        except (ValueError, RecursionError):
            raise _Passing(
                CaptionError(
                    f"{self.address} answered something that is not JSON ({self._shown(response.text)}); is this an "
                    "OpenAI-compatible endpoint?"
                )
            ) from None
        return self._read(data)

    def _refused(self, response: Any) -> NoReturn:
        status, said = response.status_code, self._said(response)
        found = f"{self.address} answered {status}{': ' if said else ''}{said}"
        broke = status == 402 or "insufficient_quota" in response.text
        if (status in _AGAIN and not broke) or status >= 500:
            wait = _retry_after(response.headers.get("retry-after", ""))
            if wait is not None and wait > LONGEST_ASKED_WAIT:
                raise EndpointError(f"{found}; it asks to wait {wait:.0f} s: run the same command again after that")
            raise _Passing(CaptionError(f"{found}; run the same command again later"), wait)
        if broke:
            raise EndpointError(f"{found}; the account has no credit left: top it up, then run the same command again")
        if status == 401:
            how = (
                f"the key in {self._key_name} was refused" if self._key else f"{self._key_name} is not set: no key sent"
            )
            raise EndpointError(f"{found}; {how}. Set that environment variable, or name another with --api-key-env")
        if status in _FOR_EVERY_CLIP or 300 <= status < 400:
            raise EndpointError(
                f"{found}; check the address (most end in /v1) and that the endpoint has a model {self.model!r}"
            )
        raise CaptionError(
            f"{found}; if it says so of every clip, check that {self.model!r} reads pictures, that --frames-shown of "
            "them fit into its context, and --llm-options"
        )

    def _read(self, data: Any) -> Answer:
        """The answer in a response's JSON."""
        try:
            choice = data["choices"][0]
            message, ending = choice["message"], choice.get("finish_reason")
            content, refusal = message.get("content"), message.get("refusal")
        except (LookupError, TypeError, AttributeError):
            error = data.get("error") if isinstance(data, dict) else None
            said = f"an error: {self._shown(_words(error))}" if error else "JSON without choices[0].message"
            raise _Passing(CaptionError(f"{self.address} answered {said}; expected a chat completion")) from None
        if isinstance(content, list):  # of parts, as some servers write it
            content = "".join(part["text"] for part in content if isinstance(part, dict) and _is_text(part.get("text")))
        text = _THINKING.sub("", _writable(content)).strip() if _is_text(content) else ""
        if refusal or ending == "content_filter":
            why = refusal if _is_text(refusal) else "its content filter stepped in"
            raise CaptionError(f"{self.model!r} refused to describe the clip: {self._shown(why)}")
        if not text and ending == "length":
            raise CaptionError(
                f"the answer of {self.model!r} was cut off before its first word; let it write more, e.g. "
                """--llm-options '{"max_tokens": 4000}'"""
            )
        if not text:
            raise _Passing(CaptionError(f"{self.model!r} at {self.address} gave an empty answer"))
        return Answer(text, ending == "length")

    def _said(self, response: Any) -> str:
        """The server's own words about a failure."""
        try:
            return self._shown(_words(response.json()))
        except (ValueError, RecursionError):  # a proxy's page, or nothing
            return self._shown(response.text)

    def _shown(self, text: str) -> str:
        """One line for a message, without the key, which some servers repeat."""
        line = " ".join(text.split())
        if self._key:
            line = line.replace(self._key, "***")
        return line if len(line) <= 300 else f"{line[:299]}…"


def chat_address(url: str) -> str:
    """The address of an endpoint's chat completions, from its base or from itself; a query stays where it is.

    Raises UniViGUError for what is no http address, and for one that holds a name or a password."""
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        named = parts.username is not None
    except ValueError:
        usable = named = False
    if named:  # not shown: it may hold a password
        raise UniViGUError("the endpoint's address holds a user name; pass the key with --api-key-env instead")
    if not usable:
        raise UniViGUError(f"{url!r} is no endpoint; expected an address like http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _writable(text: str) -> str:
    """A text that UTF-8 can write: JSON can carry halves of surrogate pairs, which neither file nor request can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _words(data: Any) -> str:
    """The message in an error's JSON: OpenAI's form, and those of the servers that are like it."""
    for name in ("error", "message", "detail"):
        if isinstance(data, dict) and data.get(name):
            return _words(data[name])
    return data if isinstance(data, str) else json.dumps(data)


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3); None for neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        seconds = (moment - datetime.now(timezone.utc)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
