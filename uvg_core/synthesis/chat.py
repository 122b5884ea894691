"""A client of any OpenAI-compatible ``/chat/completions``, with retries, and answers kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from ..errors import UniViGUError
from ..io import make_folder, write_text
from .settings import KEY_NAME, Chat

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from try to try
LONGEST_ASKED_WAIT = 300.0  # a Retry-After beyond this ends the run: it can be taken up again then
LONGEST_CONNECT = 15.0  # seconds; a model may think for minutes, a connection stands or does not

_RESERVED = ("model", "messages", "stream", "n")
# Reasoning that servers without a parser for it leave in front of the answer.
# Some templates hold its first tag back; an answer that was cut off may lack the last.
_THINKING = re.compile(r"\A(?:.*?</think(?:ing)?>|\s*<think(?:ing)?>.*)", re.DOTALL)


class ChatError(UniViGUError):
    """No answer. ``passing``: worth another try, after ``wait`` seconds where the server asks for that."""

    def __init__(self, message: str, *, passing: bool = False, wait: float | None = None) -> None:
        super().__init__(message)
        self.passing, self.wait = passing, wait


class CaptionError(ChatError):
    """This clip got no caption; another may."""


class LengthError(CaptionError):
    """The model answered, but never within the limits."""


class EndpointError(ChatError):
    """No clip will get a caption before the user puts something right."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote, stripped, and whether the server cut it off."""

    text: str
    cut: bool


class ChatClient:
    """One endpoint and one model.

    Args:
        chat: endpoint and model, the variable with the key, further entries of every request, how long an answer may
            take, and how often failures that may pass are tried again. The key is sent as a bearer token; it is never
            written, and never part of a message.
        cache: folder of answers, made if missing; None keeps none.
        note: called with one line before each wait. sleep: called with seconds.

    Raises UniViGUError at once for an address, a key, options or a cache that cannot be used, or without httpx.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        cache: Path | None = None,
        note: Callable[[str], object] = lambda _: None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise UniViGUError(
                f"captions from an endpoint need httpx, which does not import ({error}): pip install httpx"
            ) from None
        if not chat.llm:
            raise UniViGUError(
                f"--endpoint {chat.endpoint} needs --llm MODEL: which of its models shall see the clips?"
            )
        self._httpx, self.chat, self.model, self.cache = httpx, chat, chat.llm, cache
        self._note, self._sleep = note, sleep
        self._key_name = chat.api_key_env or KEY_NAME
        self._key = os.environ.get(self._key_name, "").strip()
        if chat.api_key_env and not self._key:
            raise UniViGUError(f"the environment variable {self._key_name} is not set; put the endpoint's key there")
        if not (self._key.isascii() and self._key.isprintable()):
            raise UniViGUError(f"the key in {self._key_name} holds characters that no key has; set it anew")
        self.options = _options(chat.llm_options)
        self._url = chat_address(chat.endpoint or "")
        self.address = urlunsplit((*urlsplit(self._url)[:3], "", ""))  # a query may hold a secret
        if cache is not None:
            make_folder(cache, "choose another for the answers with --cache")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(chat.llm_timeout, connect=min(chat.llm_timeout, LONGEST_CONNECT))
        try:
            httpx.URL(self._url)
            self._client = httpx.Client(headers=headers, timeout=timeout)
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
        tried, known = 0, self._known(messages)
        while known is None:
            try:
                known = self._ask(messages)
            except ChatError as error:
                tried += 1
                if not error.passing:
                    raise
                if tried > self.chat.retries:
                    raise type(error)(f"{error} (tried {'once' if tried == 1 else f'{tried} times'})") from None
                wait = min(FIRST_WAIT * 2 ** (tried - 1), LONGEST_WAIT) if error.wait is None else error.wait
                self._note(f"{error}; trying again in {wait:.3g} s ({tried} of {self.chat.retries})")
                self._sleep(wait)
        return known

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
        if self.cache is None or not (entry := self._entry(self.cache, messages)).exists():
            return None
        try:
            found = json.loads(entry.read_text("utf-8"))
            return Answer(str(found["text"]), bool(found["cut"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self._note(f"{entry}: cannot be read ({error}); asking anew")
            return None

    def _ask(self, messages: Sequence[Mapping[str, Any]]) -> Answer:
        """One request."""
        httpx = self._httpx
        try:
            response = self._client.post(self._url, json=self._body(messages))
        except httpx.RequestError as error:
            found = "it timed out" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
            if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
                how = "start the server, or check the address and the network"
                raise EndpointError(f"{self.address} cannot be reached ({found}); {how}", passing=True) from None
            how = "--llm-timeout gives it more time"
            raise CaptionError(f"{self.address} gave no answer ({found}); {how}", passing=True) from None
        try:
            data = response.json()
        except (ValueError, RecursionError):  # a proxy's page, or nothing
            data = response.text
        if not response.is_success:
            self._refused(response, self._shortened(_words(data)))
        return self._read(data)

    def _refused(self, response: Any, words: str) -> NoReturn:
        status = response.status_code
        found = f"{self.address} answered {status}{': ' if words else ''}{words}"
        if status == 402 or (status < 500 and "insufficient_quota" in response.text):
            raise EndpointError(f"{found}; the account has no credit left: top it up, then run the same command again")
        if status in (408, 409, 425, 429) or status >= 500:
            wait = _retry_after(response.headers.get("retry-after", ""))
            if wait is not None and wait > LONGEST_ASKED_WAIT:
                raise EndpointError(f"{found}; it asks to wait {wait:.0f} s: run the same command again after that")
            raise CaptionError(f"{found}; run the same command again later", passing=True, wait=wait)
        if status == 401:
            name = self._key_name
            how = f"the key in {name} was refused" if self._key else f"{name} is not set: no key sent"
            raise EndpointError(f"{found}; {how}. Set that environment variable, or name another with --api-key-env")
        if status in (404, 405) or 300 <= status < 400:
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
            found = "JSON without choices[0].message"
            if isinstance(data, str):
                found = f"something that is not JSON ({self._shortened(data)})"
            elif isinstance(data, dict) and data.get("error"):
                found = f"an error: {self._shortened(_words(data))}"
            raise CaptionError(f"{self.address} answered {found}; expected a chat completion", passing=True) from None
        if isinstance(content, list):  # of parts, as some servers write it
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        # JSON can carry halves of surrogate pairs, which neither file nor request can.
        text = content.encode("utf-8", "replace").decode("utf-8") if isinstance(content, str) else ""
        text = _THINKING.sub("", text).strip()
        if refusal or ending == "content_filter":
            why = refusal if isinstance(refusal, str) else "its content filter stepped in"
            raise CaptionError(f"{self.model!r} refused to describe the clip: {self._shortened(why)}")
        if not text and ending == "length":
            raise CaptionError(
                f"the answer of {self.model!r} was cut off before its first word; let it write more, e.g. "
                """--llm-options '{"max_tokens": 4000}'"""
            )
        if not text:
            raise CaptionError(f"{self.model!r} at {self.address} gave an empty answer", passing=True)
        return Answer(text, ending == "length")

    def _shortened(self, text: str) -> str:
        """One line for a message, without the key, which some servers repeat."""
        line = " ".join(text.split())
        line = line.replace(self._key, "***") if self._key else line
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
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _options(text: str | None) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
        json.dumps(options, allow_nan=False)  # Python's own reader knows numbers that JSON does not
        if not isinstance(options, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        example = '{"temperature": 0.7}'
        raise UniViGUError(f"--llm-options {text!r} is not a JSON object ({error}); expected e.g. {example}") from None
    taken = [name for name in _RESERVED if name in options]
    if taken:
        raise UniViGUError(f"the options of the request name {', '.join(taken)}, which this program sets itself")
    return options


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
        date = parsedate_tz(value)
        seconds = math.nan if date is None else mktime_tz(date) - time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else None
