"""Data sets from prompts: the language model is a local server that speaks the protocol, and fails as servers do."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_llm import GOOD, Script, answered, failed

from uvg_core.cli.main import main
from uvg_core.errors import UniViGUError
from uvg_core.media.video import find_clips, probe, write_video
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.synthesis.captioner import Captioner
from uvg_core.synthesis.chat import ChatClient, LengthError
from uvg_core.synthesis.endpoint import CaptionError, EndpointError, chat_address
from uvg_core.synthesis.engine import (
    CAPTION_LENGTH,
    NO_CAPTION,
    NO_CLIP,
    PROMPT_LENGTH,
    ClipJob,
    Generator,
    SynthesisReport,
    plan,
    read_prompts,
    synthesise,
)
from uvg_core.synthesis.settings import Chat

pytest.importorskip("httpx")
Image = pytest.importorskip("PIL.Image")

KEY = "sk-very-secret"
LIMITS = (5, 8)  # words in these tests
SIDE, FRAMES = 32, 5


@dataclass
class Waits:
    """The waits and notes of a client."""

    seconds: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def connect(script: Script, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ChatClient]]:
    clients: list[ChatClient] = []

    def connect(url: str = "", *, key: str | None = KEY, cache: Path | None = None, **options: Any) -> ChatClient:
        monkeypatch.setenv("OPENAI_API_KEY", key or "")
        named = {"api_key_env": "OPENAI_API_KEY"} if key else {}
        chat = Chat(**{"endpoint": url or script.url, "llm": "some-model", "retries": 3, **named, **options})
        clients.append(ChatClient(chat, cache=cache, note=waits.notes.append, sleep=waits.seconds.append))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


QUESTION = [{"role": "user", "content": "?"}]


def words(text: str) -> int:
    return len(text.split())


def pixels(seed: int = 0) -> torch.Tensor:
    """A clip that H.264 keeps: flat, its colour by seed and time."""
    level = torch.arange(FRAMES, dtype=torch.uint8) * 20 + 40 * (seed % 4)
    return level[:, None, None, None].expand(FRAMES, SIDE, SIDE, 3).contiguous()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", pixels(), 8)
    return tmp_path / "clip.mp4"


# What is sent


def test_the_model_sees_instructions_prompt_and_frames(
    script: Script, connect: Callable[..., ChatClient], clip: Path
) -> None:
    (clip.parent / "system.txt").write_text("Describe.")
    chat = {"frames_shown": 3, "frame_side": 16, "instructions": clip.parent / "system.txt"}
    captioner = Captioner(connect(llm_options='{"temperature": 0.5}', **chat), words, LIMITS)
    assert captioner.caption("a gray square", clip).text == GOOD
    (body,) = script.asked
    assert (body["model"], body["temperature"], script.paths) == ("some-model", 0.5, ["/v1/chat/completions"])
    assert script.keys == [f"Bearer {KEY}"]
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Describe."}
    text, *pictures = user["content"]
    assert "a gray square" in text["text"]
    assert "between 5 and 8 tokens" in text["text"]
    levels = []
    for picture in pictures:
        start, data = picture["image_url"]["url"].split(",")
        assert start == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (image.format, image.size) == ("JPEG", (16, 16))
        levels.append(image.convert("L").getpixel((8, 8)))
    assert len(levels) == 3
    assert all(abs(level - expected) < 8 for level, expected in zip(levels, (0, 40, 80), strict=True)), levels


def test_no_more_frames_are_shown_than_there_are(
    connect: Callable[..., ChatClient], script: Script, clip: Path
) -> None:
    Captioner(connect(key=None, frames_shown=100), words, LIMITS).caption("x", clip)
    assert len(script.asked[0]["messages"][1]["content"]) == 1 + FRAMES
    assert script.keys == [None]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host:8000/v1", "http://host:8000/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/deployments/m?api-version=1", "https://host/deployments/m/chat/completions?api-version=1"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert chat_address(url) == address


@pytest.mark.parametrize("url", ["", "host:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1/v1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UniViGUError, match="is not a valid endpoint; expected an address like http://127"):
        chat_address(url)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UniViGUError, match="--api-key-env") as caught:
        chat_address("http://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


# Failures that pass


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (failed(500, "out of luck"), "answered 500: out of luck"),
        (failed(503), "answered 503"),
        (failed(429, "slow down"), "answered 429: slow down"),
        ((200, b"<html>busy", {}), "not JSON (<html>busy)"),
        ((200, b'{"error": {"message": "overloaded"}}', {}), "overloaded"),
        ((200, b'{"choices": []}', {}), "JSON without choices"),
        ((200, b"[1]", {}), "JSON without choices"),
        (answered(""), "empty answer"),
        (answered(None), "empty answer"),
        (answered("<think>hm</think> \n"), "empty answer"),
        ("hang up", "did not answer"),
    ],
)
def test_a_failure_that_passes_is_tried_again(
    script: Script, connect: Callable[..., ChatClient], waits: Waits, failure: Any, said: str
) -> None:
    script.answers = [failure, failure]
    assert connect().answer(QUESTION).text == GOOD
    assert len(script.asked) == 3
    assert waits.seconds == [1, 2]
    assert said in waits.notes[0]
    assert waits.notes[1].endswith("trying again in 2 s (2 of 3)")
    script.answers = [failure] * 4
    with pytest.raises(CaptionError, match=r"\(tried 4 times\)") as caught:
        connect().answer(QUESTION)
    assert said in str(caught.value)


def test_silence_is_given_up_and_tried_again(script: Script, connect: Callable[..., ChatClient], waits: Waits) -> None:
    script.answers = ["silence"]
    assert connect(llm_timeout=0.2).answer(QUESTION).text == GOOD
    assert "it timed out" in waits.notes[0]


def test_the_server_says_how_long_to_wait(script: Script, connect: Callable[..., ChatClient], waits: Waits) -> None:
    past = formatdate(0, usegmt=True)
    script.answers = [failed(429, Retry_After="7.5"), failed(503, Retry_After=past), failed(429, Retry_After="soon")]
    assert connect().answer(QUESTION).text == GOOD
    assert waits.seconds == [7.5, 0, 4]


# Failures that do not


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (failed(401, f"Incorrect API key provided: {KEY}"), "was refused; check that environment variable"),
        (failed(404, "no such model"), r"no such model; check the address .* has a model 'some-model'"),
        (failed(405), "check the address"),
        (failed(301, location="http://elsewhere/"), "answered 301; check the address"),
        (failed(402, "pay"), "no credit left"),
        ((429, b'{"error": {"message": "no", "code": "insufficient_quota"}}', {}), "no credit left"),
        (failed(429, "later", Retry_After="86400"), "asks to wait 86400 s"),
    ],
)
def test_a_failure_of_every_clip_is_not_tried_again(
    script: Script, connect: Callable[..., ChatClient], failure: Any, said: str
) -> None:
    script.usual = failure
    with pytest.raises(EndpointError, match=said) as caught:
        connect().answer(QUESTION)
    assert len(script.asked) == 1
    assert f"{script.url}/chat/completions answered {failure[0]}" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (failed(400, "too many images"), "too many images; if this happens for every clip"),
        (answered(None, refusal="I cannot."), "refused to describe the clip: I cannot."),
        (answered("", "content_filter"), "content filter"),
        (answered("<think>so much", "length"), "cut off before its first word"),
        (answered(None, "length"), "cut off before its first word"),
    ],
)
def test_a_failure_of_one_clip_is_not_tried_again(
    script: Script, connect: Callable[..., ChatClient], failure: Any, said: str
) -> None:
    script.usual = failure
    with pytest.raises(CaptionError, match=said):
        connect().answer(QUESTION)
    assert len(script.asked) == 1


def test_a_missing_key_is_named(script: Script, connect: Callable[..., ChatClient]) -> None:
    script.usual = failed(401, "who are you")
    with pytest.raises(EndpointError, match="OPENAI_API_KEY is not set, so no key was sent"):
        connect(key=None).answer(QUESTION)


@pytest.mark.parametrize(
    "content",
    [
        "<think>a red\ncircle?</think>\n words",
        "it begins unseen</think> words",
        " words\n",
        [{"type": "text", "text": "wor"}, {"type": "text", "text": "ds"}, {"type": "other"}],
    ],
)
def test_answers_in_all_their_forms(script: Script, connect: Callable[..., ChatClient], content: Any) -> None:
    script.usual = answered(content)
    assert connect().answer(QUESTION).text == "words"


def test_nobody_there(connect: Callable[..., ChatClient], waits: Waits) -> None:
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:1/v1/chat/completions cannot be reached .*tried 4 times"):
        connect("http://127.0.0.1:1/v1?key=secret").answer(QUESTION)
    assert waits.seconds == [1, 2, 4]
    assert "secret" not in "".join(waits.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "a\nb"}, "contains characters that cannot be part of a key"),
        ({"llm_options": '{"model": "other", "stream": true}'}, "contains model, stream"),
        ({"url": "http://ho\u0007st/v1"}, "cannot be used"),
    ],
)
def test_clients_that_cannot_work(connect: Callable[..., ChatClient], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UniViGUError, match=said):
        connect(**options)


# Length


def test_it_asks_again_until_the_length_is_right(
    script: Script, connect: Callable[..., ChatClient], clip: Path
) -> None:
    long = " ".join(["word"] * 12)
    script.answers = [answered("too\nshort"), answered(long), answered(GOOD, "length")]
    script.usual = answered("<think>hm</think>\n one  two\nthree\r\nfour five \ud800 ")
    caption = Captioner(connect(), words, LIMITS).caption("a prompt", clip)
    assert (caption.text, caption.tokens, caption.answers) == ("one two three four five ?", 6, 4)
    second, third, fourth = (body["messages"] for body in script.asked[1:])
    assert second[:2] == script.asked[0]["messages"]
    assert second[2] == {"role": "assistant", "content": "too\nshort"}
    assert "has 2 tokens in 2 words. The description must have between 5 and 8 tokens" in second[3]["content"]
    assert "with more of what is to be seen" in second[3]["content"]
    assert third[4]["content"] == long
    assert "has 12 tokens" in third[5]["content"]
    assert "again, shorter" in third[5]["content"]
    assert "was cut off" in fourth[7]["content"]


def test_the_hint_in_words_follows_the_tokenizer(
    script: Script, connect: Callable[..., ChatClient], clip: Path
) -> None:
    """A vocabulary that spells words out needs fewer words."""
    script.answers = [answered("abcd efgh " * 5)]
    caption = Captioner(connect(), lambda text: len(text.replace(" ", "")), (8, 24)).caption("x", clip)
    assert caption.text == GOOD
    assert "has 40 tokens in 10 words" in script.asked[1]["messages"][3]["content"]
    assert "about 2 to 6 words; aim for 4 words" in script.asked[1]["messages"][3]["content"]


def test_an_answer_without_a_word_is_no_caption(script: Script, connect: Callable[..., ChatClient], clip: Path) -> None:
    script.answers = [answered("... ! ... ! ..."), answered("\x07 \u202e \x1b . . .")]
    assert Captioner(connect(), words, LIMITS).caption("x", clip).answers == 3
    script.usual = answered("one two \x1b[31m three\u202e four five")
    assert Captioner(connect(), words, LIMITS).caption("x", clip).text == r"one two \x1b[31m three\u202e four five"


def test_a_length_that_is_never_right(
    script: Script, connect: Callable[..., ChatClient], clip: Path, tmp_path: Path
) -> None:
    script.usual = answered("never enough")
    captioner = Captioner(connect(cache=tmp_path / "cache", attempts=3), words, LIMITS)
    with pytest.raises(LengthError, match="had 2, 2, 2 tokens; expected 5 to 8"):
        captioner.caption("a prompt", clip)
    assert len(script.asked) == 3
    # Nothing of it is kept, so that a later run has another chance.
    script.usual = answered(GOOD)
    assert captioner.caption("a prompt", clip).answers == 1


# The cache


def test_what_was_asked_before_costs_nothing(
    script: Script, connect: Callable[..., ChatClient], waits: Waits, clip: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "some" / "cache"
    script.answers = [answered("too short")]

    def caption(prompt: str = "a prompt", frames: int = 3, **options: Any) -> str:
        return Captioner(connect(cache=cache, frames_shown=frames, **options), words, LIMITS).caption(prompt, clip).text

    assert caption() == caption() == caption(url=script.url + "/", key="another") == GOOD
    assert len(script.asked) == 2
    entries = sorted(cache.iterdir())
    assert len(entries) == 2
    assert all(KEY not in entry.read_text() for entry in entries)
    # Whatever is sent counts: words, pictures, options.
    caption("another prompt")
    caption(frames=2)
    caption(llm_options='{"temperature": 0}')
    write_video(clip, pixels(1), 8)
    caption()
    assert len(script.asked) == 6
    # A damaged entry is asked for anew.
    for entry in cache.iterdir():
        entry.write_text("{")
    caption()
    assert len(script.asked) == 7
    assert "asking again" in waits.notes[-1]


# The run


@dataclass
class Studio:
    """A generator of flat clips that notes what it made, and fails on demand."""

    made: list[str] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)

    def __call__(self, job: ClipJob, path: Path) -> None:
        if job.prompt in self.failing:
            raise self.failing[job.prompt]
        write_video(path, pixels(job.seed), 8)
        self.made.append(job.prompt)


PROMPTS = ("a red circle", "a green square", "a blue star")
JOBS = plan(PROMPTS, 1, 0)
SETTINGS = {"model": "a.safetensors", "sha256": "12", "steps": 4}


@pytest.fixture
def studio() -> Studio:
    return Studio()


@pytest.fixture
def go(studio: Studio, connect: Callable[..., ChatClient], tmp_path: Path) -> Callable[..., SynthesisReport]:
    def go(
        jobs: list[ClipJob] = JOBS,
        *,
        captions: bool = True,
        side: int = 16,
        generator: dict[str, Any] = SETTINGS,
        **options: Any,
    ) -> SynthesisReport:
        client = connect(frames_shown=2, frame_side=side, attempts=2)
        captioner = Captioner(client, words, LIMITS) if captions else None
        return synthesise(jobs, tmp_path / "out", Generator(studio, generator, words, (0, 6)), captioner, **options)

    return go


def record(folder: Path) -> Any:
    """What the lines say in the end."""
    found: dict[str, Any] = {"generators": [], "captioners": [], "clips": {}}
    for line in (folder / "out" / "synthesis.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        for kind in entry.keys() & {"generator", "captioner"} if "clip" not in entry else ():
            found[f"{kind}s"].append(entry[kind])
        if "clip" in entry:
            found["clips"][entry["clip"]] = entry
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir() if not path.name.startswith("."))


def test_every_prompt_gets_a_clip_and_two_texts(go: Callable[..., SynthesisReport], tmp_path: Path) -> None:
    report = go()
    assert str(report) == "3 clips: 3 made, 0 already complete"
    assert not report.failed
    expected = [f"{job.name}{suffix}" for job in JOBS for suffix in (".mp4", ".txt", ".detail.txt")]
    assert names(tmp_path) == sorted([*expected, "synthesis.jsonl"])
    for job in JOBS:
        base = tmp_path / "out" / job.name
        assert probe(base.with_suffix(".mp4")).frames == FRAMES
        assert base.with_suffix(".txt").read_text("utf-8") == job.prompt + "\n"
        assert base.with_suffix(".detail.txt").read_text("utf-8") == GOOD + "\n"
        entry = record(tmp_path)["clips"][job.name]
        assert (entry["prompt"], entry["seed"], entry["caption_tokens"]) == (job.prompt, job.seed, 6)
    assert record(tmp_path)["generators"] == [SETTINGS]
    assert record(tmp_path)["captioners"][0]["llm"] == "some-model"
    assert KEY not in (tmp_path / "out" / "synthesis.jsonl").read_text("utf-8")


def test_names_and_seeds_follow_the_prompt() -> None:
    jobs = plan(["a red circle", "빨간 원", "x" * 300], 2, 7)
    assert len({job.name for job in jobs}) == len({job.seed for job in jobs}) == 6
    assert jobs[0].name.startswith("a-red-circle-")
    assert jobs[2].name.startswith("clip-")
    assert all(len(job.name) < 80 and job.name.isascii() for job in jobs)
    again = plan(["new", "a red circle"], 3, 7)
    assert again[3:5] == jobs[:2]
    assert plan(["a red circle"], 1, 8)[0].name == jobs[0].name
    assert plan(["a red circle"], 1, 8)[0].seed != jobs[0].seed


def test_a_second_run_does_what_is_missing(
    go: Callable[..., SynthesisReport], studio: Studio, script: Script, tmp_path: Path
) -> None:
    go()
    out = tmp_path / "out"
    assert str(go()) == "3 clips: 0 made, 3 already complete"
    assert (len(studio.made), len(script.asked)) == (3, 3)
    first, second, third = (out / job.name for job in JOBS)
    first.with_suffix(".txt").unlink()
    second.with_suffix(".detail.txt").write_text(" \n")
    data = third.with_suffix(".mp4").read_bytes()
    third.with_suffix(".mp4").write_bytes(data[: len(data) // 2])
    third.with_suffix(".detail.txt").write_text("by hand")
    assert "is left alone; move it away to make the clip again" in str(go())  # maybe somebody's own
    assert third.with_suffix(".mp4").read_bytes() == data[: len(data) // 2]
    third.with_suffix(".mp4").unlink()
    second.with_suffix(".detail.txt").write_text(" \n")
    report = go()
    assert (report.made, report.complete) == ([JOBS[1], JOBS[2]], [JOBS[0]])
    assert studio.made[3:] == [PROMPTS[2]]
    assert len(script.asked) == 5
    assert first.with_suffix(".txt").read_text() == PROMPTS[0] + "\n"
    assert third.with_suffix(".mp4").read_bytes() == data
    assert third.with_suffix(".detail.txt").read_text() == "by hand"  # the same clip again: it stays true
    more = plan([*PROMPTS[1:], "a new one"], 1, 0)
    assert str(go(more)) == "3 clips: 1 made, 2 already complete"


def test_clips_first_and_captions_later(
    go: Callable[..., SynthesisReport], studio: Studio, script: Script, tmp_path: Path
) -> None:
    report = go(captions=False)
    assert str(report) == "3 clips: 0 made, 0 already complete, 3 without a caption (no --endpoint)"
    assert not report.failed
    assert not list((tmp_path / "out").glob("*.detail.txt"))
    assert len(go().made) == 3
    assert (len(studio.made), len(script.asked)) == (3, 3)
    assert len(go(captions=False).complete) == 3


def test_other_settings_are_not_mixed_unasked(
    go: Callable[..., SynthesisReport], studio: Studio, script: Script, tmp_path: Path
) -> None:
    go(JOBS[:2])
    with pytest.raises(UniViGUError, match=r"steps was 4 and is 8; frame_side was 16 and is 32.*--anyway"):
        go(generator={**SETTINGS, "steps": 8}, side=32)
    assert len(go(JOBS[:2], generator={**SETTINGS, "model": "renamed.safetensors"}).complete) == 2
    other = {**SETTINGS, "steps": 8}
    report = go(generator=other, anyway=True)
    assert (len(report.made), len(report.complete)) == (1, 2)
    kept = record(tmp_path)
    assert kept["generators"] == [SETTINGS, other]
    assert [kept["clips"][job.name]["generator"] for job in JOBS] == [0, 0, 1]
    # A clip that is made with other settings than before loses the caption of the other clip.
    (tmp_path / "out" / f"{JOBS[0].name}.mp4").unlink()
    script.usual = answered("a b c d e f g")
    assert go(generator=other).made == [JOBS[0]]
    assert (tmp_path / "out" / f"{JOBS[0].name}.detail.txt").read_text() == "a b c d e f g\n"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"version": 2}', '{"version": 1, "generators": [], "captioners": [], "clips": {"a": {"b": 1}}}'],
)
def test_a_damaged_record_is_not_overwritten(go: Callable[..., SynthesisReport], tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "synthesis.json").write_text(text)
    with pytest.raises(UniViGUError, match=r"synthesis\.json: cannot be read as the record of this folder"):
        go()
    assert (tmp_path / "out" / "synthesis.json").read_text() == text


def test_what_fails_is_left_out_and_counted(
    go: Callable[..., SynthesisReport], studio: Studio, script: Script, tmp_path: Path
) -> None:
    prompts = ["one two three four five six seven", "breaks", "never right", "refused", "fine"]
    jobs = plan(prompts, 1, 0)
    studio.failing["breaks"] = RuntimeError("some trouble")
    script.answers = [answered("short"), answered("short"), failed(400, "bad picture")]
    report = go(jobs)
    assert [(problem.job.prompt, problem.reason) for problem in report.problems] == [
        (prompts[0], PROMPT_LENGTH),
        ("breaks", NO_CLIP),
        ("never right", CAPTION_LENGTH),
        ("refused", NO_CAPTION),
    ]
    assert report.failed
    assert report.made == [jobs[4]]
    first, *lines = str(report).splitlines()
    assert first.startswith("5 clips: 1 made, 0 already complete, 4 left out (prompt outside the token limits: 1, clip")
    assert "7 tokens; expected 0 to 6" in lines[0]
    assert "RuntimeError: some trouble" in lines[1]
    assert "bad picture" in lines[3]
    # Their clips stay, and a later run takes it up from there.
    assert len(find_clips(tmp_path / "out")) == 3
    studio.failing.clear()
    assert len(go(jobs).made) == 3
    assert studio.made == ["never right", "refused", "fine", "breaks"]


def test_what_fails_for_every_clip_stops_the_run(
    go: Callable[..., SynthesisReport], studio: Studio, script: Script, tmp_path: Path
) -> None:
    script.answers = [answered(GOOD)]
    script.usual = failed(401, "who are you")
    report = go()
    assert (len(report.made), report.stopped is not None, report.failed) == (1, True, True)
    assert studio.made == list(PROMPTS[:2])
    assert str(report).startswith(
        "3 clips: 1 made, 0 already complete, 1 left out (no caption from the language model: 1"
    )
    assert "1 not started" in str(report).splitlines()[0]
    script.usual = answered(GOOD)
    assert (len(go().made), len(studio.made)) == (2, 3)


def test_three_failures_in_a_row_stop_the_run(
    go: Callable[..., SynthesisReport], studio: Studio, script: Script
) -> None:
    jobs = plan([f"prompt {n}" for n in range(9)], 1, 0)
    script.answers = [failed(400, "odd"), failed(400, "odd"), answered(GOOD)]
    script.usual = failed(400, "no pictures, please")
    report = go(jobs)
    assert (len(report.made), len(report.problems), len(studio.made)) == (1, 5, 6)
    assert report.stopped is not None
    assert report.stopped.startswith("no caption from the language model, 3 times in a row; the last time: ")
    studio.failing = {job.prompt: UniViGUError("disk full") for job in jobs}
    assert (go(jobs[6:], captions=False).stopped or "").endswith("disk full")
    # Answers of the wrong length are answers.
    studio.failing.clear()
    script.usual = answered("short")
    report = go(jobs[3:])
    assert (report.stopped, len(report.problems)) == (None, 6)


def test_memory_that_does_not_suffice_ends_the_run(go: Callable[..., SynthesisReport], studio: Studio) -> None:
    studio.failing[PROMPTS[1]] = torch.OutOfMemoryError("too large")
    with pytest.raises(torch.OutOfMemoryError):
        go()
    studio.failing.clear()
    assert (len(go().complete), studio.made) == (1, list(PROMPTS))


# The command


@pytest.fixture
def command(script: Script, tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("\ufeff# a list\n\na red circle\n  a red  circle \n", "utf-8")
    return ["synthesise", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out"), "--device", "cpu", "--steps", "1"]


def test_prompts_are_read_from_a_file(command: list[str], tmp_path: Path) -> None:
    assert read_prompts(tmp_path / "prompts.txt") == (["a red circle"], 1)
    (tmp_path / "prompts.txt").write_text("# nothing\n\n")
    with pytest.raises(UniViGUError, match="the file contains no prompt"):
        read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_bytes(b"\x89PNG\x00\xff")
    with pytest.raises(UniViGUError, match="is not text"):
        read_prompts(tmp_path / "prompts.txt")


def test_the_command_with_the_embedded_model(
    command: list[str],
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.out == "1 clip: 0 made, 0 already complete, 1 without a caption (no --endpoint)\n"
    assert "no --endpoint: clips and prompts are written" in shown.err
    assert "prompts are repeated" in shown.err
    (clip,) = find_clips(tmp_path / "out")
    pipe = Pipeline(device="cpu")
    assert probe(clip).frames == pipe.config.run.frames

    monkeypatch.setenv("SOME_KEY", KEY)
    text = "a red circle"
    tokens = len(pipe.tokenizer.ids(text))
    (tmp_path / "system.txt").write_text("Be brief.\n")
    script.answers = [answered("a red circle and a red circle"), answered(text)]
    asking = [
        *command, "--endpoint", script.url, "--llm", "some-model", "--api-key-env", "SOME_KEY", "--frames-shown", "2",
        "--min-tokens", str(tokens), "--max-tokens", str(tokens), "--instructions", str(tmp_path / "system.txt"),
        "--llm-options", '{"temperature": 0.7}',
    ]  # fmt: skip
    assert main(asking) == 0
    shown = capsys.readouterr()
    assert shown.out == "1 clip: 1 made, 0 already complete\n"
    assert clip.with_suffix(".detail.txt").read_text("utf-8") == f"{text}\n"
    assert (len(script.asked), script.asked[0]["messages"][0]["content"]) == (2, "Be brief.")
    assert script.asked[0]["temperature"] == 0.7
    entry = record(tmp_path)
    assert entry["clips"][clip.stem]["answers"] == 2
    assert (entry["generators"][0]["steps"], len(entry["generators"][0]["sha256"])) == (1, 64)
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert all(KEY.encode() not in data for data in written)
    assert KEY not in shown.out + shown.err

    assert main(asking) == 0
    assert capsys.readouterr().out == "1 clip: 0 made, 1 already complete\n"
    assert main([*asking, "--guidance", "1.25"]) == 1
    assert "guidance was" in capsys.readouterr().err
    clip.with_suffix(".detail.txt").unlink()
    script.usual = failed(401, "no")
    assert main([*asking, "--cache", str(tmp_path / "empty")]) == 1
    shown = capsys.readouterr()
    assert "1 left out (no caption from the language model: 1)" in shown.out
    assert f"error: {script.url}/chat/completions answered 401: no; the key in SOME_KEY was refused" in shown.err
    # The answers lie in the first cache still.
    asked = len(script.asked)
    assert main(asking) == 0
    assert len(script.asked) == asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--endpoint", "http://127.0.0.1:1/v1"], "needs --llm MODEL"),
        (["--llm", "m"], "--llm is for captions; name their --endpoint too"),
        (["--endpoint", "nowhere", "--llm", "m"], "'nowhere' is not a valid endpoint"),
        (["--endpoint", "http://h/v1", "--llm", "m", "--llm-options", "[1]"], "is not a JSON object"),
        (["--endpoint", "http://h/v1", "--llm", "m", "--llm-options", '{"a": NaN}'], "is not a JSON object"),
        (["--min-tokens", "9", "--max-tokens", "8"], "--min-tokens 9 is above --max-tokens 8"),
        (["--endpoint", "http://h/v1", "--llm", "m", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--height", "40"], "argument --height: 40 is not a multiple of 16; the nearest is 32 or 48"),
        (["--width", "8"], "argument --width: 8 is not a multiple of 16; the nearest is 16"),
        (["--frames", "8"], "argument --frames: 8 is not 4n+1; the nearest is 5 or 9"),
    ],
)
def test_a_command_that_is_used_wrongly_exits_2_before_anything_is_loaded(
    command: list[str], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *options, *more, "--model", "nowhere"])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--endpoint", "http://h/v1", "--llm", "m", "--instructions", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--prompt-max-tokens", "9999"], "reads prompts of at most"),
    ],
)
def test_wrong_commands(
    command: list[str], options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    assert main([*command, *options]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: " in shown.err
    assert said in shown.err
    assert not (tmp_path / "out").exists()
