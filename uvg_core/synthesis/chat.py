"""A client of any OpenAI-compatible ``/chat/completions``, with retries, and answers kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any, NoReturn

from ..data.caches import keep_newest
from ..errors import UniViGUError, WrongUsage
from ..io import make_folder, read_text, require_makeable, write_text
from .endpoint import MOST_BYTES, CaptionError, ChatError, Endpoint, EndpointError, Reply, require_key
from .settings import Chat

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from try to try
LONGEST_ASKED_WAIT = 300.0  # a Retry-After beyond this ends the run: it can be taken up again then
MOST_LETTERS = 2**20  # of one answer; the longest caption that can be asked for has fewer

_CHOOSE = "choose another for the answers with --cache"
_RESERVED = ("model", "messages", "stream", "n")
# Reasoning that servers without a parser for it leave in front of the answer.
# Some templates hold its first tag back; an answer that was cut off may lack the last.
_THINKING = re.compile(r"\A(?:.*?</think(?:ing)?>|\s*<think(?:ing)?>.*)", re.DOTALL)


def require_usable(chat: Chat) -> None:
    """Raise WrongUsage for settings that do not fit each other, or that no endpoint could be asked with."""
    if chat.endpoint is None:
        for name in ("llm", "api_key_env", "instructions", "llm_options", "cache"):
            if getattr(chat, name) is not None:
                raise WrongUsage(f"--{name.replace('_', '-')} is for captions; name their --endpoint too")
    elif not chat.llm:
        raise WrongUsage("--endpoint needs --llm MODEL, the name of the vision-language model to use")
    else:
        require_key(chat)
        _options(chat.llm_options)
    if chat.min_tokens is not None and chat.max_tokens is not None and chat.min_tokens > chat.max_tokens:
        raise WrongUsage(f"--min-tokens {chat.min_tokens} is above --max-tokens {chat.max_tokens}; lower it")


class LengthError(CaptionError):
    """The model answered, but never within the limits."""


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
        cache: folder of answers, made for the first one that is kept; None keeps none.
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
        require_usable(chat)
        self.chat, self.model, self.cache = chat, str(chat.llm), cache
        self._note, self._sleep = note, sleep
        self.options = _options(chat.llm_options)
        self._endpoint = Endpoint(chat)
        self.address = self._endpoint.address
        if cache is not None:
            require_makeable(cache, _CHOOSE)
            keep_newest(cache)

    def close(self) -> None:
        self._endpoint.close()

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
        """Keep an answer for ``answer`` to find. Where it cannot be kept, it will be asked for again."""
        if self.cache is not None:
            try:
                make_folder(self.cache, _CHOOSE)
                write_text(self._entry(self.cache, messages), json.dumps(asdict(answer), ensure_ascii=False) + "\n")
            except UniViGUError as error:
                self._note(str(error))

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
            found = json.loads(read_text(entry, most=MOST_BYTES, exact=True))
            return Answer(_writable(str(found["text"])), bool(found["cut"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self._note(f"{entry}: cannot be read ({error}); asking again")
            return None

    def _ask(self, messages: Sequence[Mapping[str, Any]]) -> Answer:
        """One request."""
        reply = self._endpoint.post(self._body(messages))
        if not reply.accepted:
            self._refused(reply)
        return self._read(reply)

    def _refused(self, reply: Reply) -> NoReturn:
        status, words = reply.status, self._endpoint.shown(_words(reply.data))
        found = f"{self.address} answered {status}{': ' if words else ''}{words}"
        if status == 402 or (status < 500 and "insufficient_quota" in reply.text):
            raise EndpointError(f"{found}; the account has no credit left. Add credit, then run the same command again")
        if status in (408, 409, 425, 429) or status >= 500:
            wait = _retry_after(reply.retry_after)
            if wait is not None and wait > LONGEST_ASKED_WAIT:
                raise EndpointError(f"{found}; it asks to wait {wait:.0f} s. Run the same command again after that")
            raise CaptionError(f"{found}; run the same command again later", passing=True, wait=wait)
        if status == 401:
            refused = f"the key in {self._endpoint.key_name} was refused; check that environment variable"
            raise EndpointError(f"{found}; {self._endpoint.keyless or refused}, or name another with --api-key-env")
        if status in (404, 405) or 300 <= status < 400:
            raise EndpointError(
                f"{found}; check the address (most end in /v1) and that the endpoint has a model {self.model!r}"
            )
        raise CaptionError(
            f"{found}; if this happens for every clip, check that {self.model!r} accepts images, that --frames-shown "
            "of them fit into its context, and --llm-options"
        )

    def _read(self, reply: Reply) -> Answer:
        """The answer in a reply's JSON."""
        data, shown = reply.data, self._endpoint.shown
        try:
            choice = data["choices"][0]
            message, ending = choice["message"], choice.get("finish_reason")
            content, refusal = message.get("content"), message.get("refusal")
        except (LookupError, TypeError, AttributeError):
            found = "JSON without choices[0].message"
            if reply.problem:
                found = f"something that is {reply.problem} ({shown(reply.text)})"
            elif isinstance(data, dict) and data.get("error"):
                found = f"an error: {shown(_words(data))}"
            raise CaptionError(f"{self.address} answered {found}; expected a chat completion", passing=True) from None
        if isinstance(content, list):  # of parts, as some servers write it
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if isinstance(content, str) and len(content) > MOST_LETTERS:
            raise CaptionError(f"the answer of {self.model!r} has {len(content)} characters; expected a caption")
        text = _THINKING.sub("", _writable(content) if isinstance(content, str) else "").strip()
        if refusal or ending == "content_filter":
            why = refusal if isinstance(refusal, str) else "it was stopped by the content filter"
            raise CaptionError(f"{self.model!r} refused to describe the clip: {shown(why)}")
        if not text and ending == "length":
            raise CaptionError(
                f"the answer of {self.model!r} was cut off before its first word; allow longer answers, e.g. "
                """--llm-options '{"max_tokens": 4000}'"""
            )
        if not text:
            raise CaptionError(f"{self.model!r} at {self.address} returned an empty answer", passing=True)
        return Answer(text, ending == "length")


def _options(text: str | None) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
        json.dumps(options, allow_nan=False)  # Python's own reader knows numbers that JSON does not
        if not isinstance(options, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        example = '{"temperature": 0.7}'
        raise WrongUsage(f"--llm-options {text!r} is not a JSON object ({error}); expected e.g. {example}") from None
    taken = [name for name in _RESERVED if name in options]
    if taken:
        raise WrongUsage(f"--llm-options contains {', '.join(taken)}, which this program sets itself; remove that")
    return options


def _writable(text: str) -> str:
    """JSON can carry halves of surrogate pairs, which neither file nor request can."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
            date = parsedate_tz(value)
            seconds = math.nan if date is None else mktime_tz(date) - time.time()
        except (ValueError, TypeError, LookupError, OverflowError):  # of dates that are almost some
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
