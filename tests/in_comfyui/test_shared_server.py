"""A server that several people use: what one of them may name, see, break and wait for."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from in_comfyui_host import ROOT, ComfyUI, Server
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SAMPLES = ROOT / "samples" / "uvg_sample_clips"
SECRET = "the words that nobody may see"
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def own(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose owner has opened no other folder."""
    with Server(comfyui, tmp_path_factory.mktemp("shared") / "server") as server:
        yield server


@dataclass
class Person:
    """Somebody with a page of ComfyUI, or a script: with a ``name`` the server sends them what it does."""

    server: Server
    name: str | None = None
    events: list[Any] = field(default_factory=list)

    def get(self, path: str) -> Any:
        with _OPEN.open(self.server.url + path, timeout=20) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with _OPEN.open(urllib.request.Request(self.server.url + path, data, kind), timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def queue(self, graph: Any) -> str:
        """The id of a prompt, or the server's refusal."""
        try:
            return str(
                self.post("/prompt", {"prompt": graph, **({"client_id": self.name} if self.name else {})})["prompt_id"]
            )
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def result(self, prompt: str, seconds: float = 120) -> Any:
        """The history of a prompt; of one that the server refused, that."""
        if len(prompt) > 40:
            return {"refused": json.loads(prompt)}
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.get(f"/history/{prompt}")
            if prompt in found:
                return found[prompt]
            time.sleep(0.02)
        pytest.fail(f"no answer to a prompt for {seconds:g} s: the server's thread is dead\n{self.server.last_words()}")

    def run(self, graph: Any) -> Any:
        return self.result(self.queue(graph))

    def listen(self) -> threading.Thread:
        """Note everything that the server sends to this page."""
        ready = threading.Event()

        def note() -> None:
            address = self.server.url.replace("http", "ws", 1) + f"/ws?clientId={self.name}"
            with connect(address, proxy=None, max_size=None) as socket:
                ready.set()
                with suppress(ConnectionClosed):  # at the end of the tests
                    self.events.extend(iter(socket.recv, None))

        thread = threading.Thread(target=note, daemon=True)
        thread.start()
        assert ready.wait(30)
        return thread


def workflow(name: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A shipped workflow with other inputs, by the class of the node."""
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph.values():
        node["inputs"].update(changes.get(node["class_type"], {}))
    return graph


def error_of(history: Any) -> dict[str, Any]:
    """What went wrong in a prompt."""
    if "refused" in history:
        return {"exception_message": json.dumps(history["refused"]), "traceback": []}
    messages = [data for kind, data in history["status"]["messages"] if kind == "execution_error"]
    return messages[0] if messages else {}


def texts_of(history: Any) -> list[str]:
    assert history["status"]["status_str"] == "success", error_of(history)
    return [text for output in history["outputs"].values() for text in output.get("text", [])]


def clips_in(folder: Path, **names: str) -> Path:
    """A folder of sample clips under other names."""
    folder.mkdir(parents=True)
    for (name, text), clip in zip(names.items(), sorted(SAMPLES.glob("*.mp4")), strict=False):
        shutil.copy(clip, folder / f"{name}.mp4")
        if text:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


# 1. Folders stay inside


def load_clips(folder: str) -> dict[str, Any]:
    graph = workflow("caption_folder")
    graph["2"] = {
        "class_type": "UniViGULoadClips",
        "inputs": {
            "model": ["1", 0],
            "clip": ["1", 1],
            "folder": folder,
            "subfolders": True,
            "need_details": False,
            "frames": 0,
        },
    }
    graph["3"]["inputs"]["source"], graph["4"]["inputs"]["source"] = ["2", 1], ["2", 3]
    return graph


def caption_folder(folder: str, **changes: Any) -> dict[str, Any]:
    return workflow("caption_folder", UniViGUCaptionFolder={"folder": folder, "steps": 2, "length": 4, **changes})


def hostile_folders(secret: Path, base: Path) -> list[str]:
    """Spellings of a folder outside, and of one that is not there, on every system."""
    up = os.path.relpath(secret, base / "input")
    spelled = [
        secret, f"{secret}/", f"{secret}/.", f"//{str(secret).lstrip('/')}", f"///{str(secret).lstrip('/')}",
        f'"{secret}"', f" {secret} ", f"{secret}/../secret", up, f"./{up}", f"uvg_sample_clips/../{up}",
        f"nothing/../{up}",
        up.replace("/", "//"), f"{up}/", "linked", "linked/", "linked/deeper", "chain", "chain/deeper", "in/linked",
        "dangling", "loop", f"{base}/input/linked", f"{base}/input/../../secret", f"{base}/output/../../secret",
        f"{base}/models", f"{base}/user", f"{base}", "..", "../", "../..", "../models", "../custom_nodes", "/", "/etc",
        "/proc/self/cwd", "/proc/self/root", "/dev/fd", "~", "~root", "$HOME", "%USERPROFILE%", "file:///etc",
        f"file://{secret}", "http://127.0.0.1/x", "..\\..\\secret", "C:\\Windows", "C:/Windows", "c:",
        "\\\\host\\share",
        "//host/share", "\\\\?\\C:\\Windows", "\\\\.\\pipe\\x", "NUL", "con", "a:b", "clips::$DATA", "secret\0",
        f"{secret}\0", "uvg_sample_clips\0", "\n..", "\x1b]0;x\x07", "\u202e..", "..%2f..%2fsecret", "..%c0%af..",
        "nothing at all", "nothing/there", "a" * 300, "a/" * 2000, "uvg_sample.mp4",
    ]  # fmt: skip
    return [str(one) for one in spelled]


@pytest.fixture(scope="module")
def secret(own: Server) -> Path:
    """A folder outside, and links to it inside of ComfyUI's input folder."""
    secret, home = own.base.parent / "secret", own.base / "input"
    clips_in(secret, a=SECRET, b="")
    clips_in(secret / "deeper", c=SECRET)
    (home / "linked").symlink_to(secret)
    (home / "chain").symlink_to(home / "linked")
    (home / "in").mkdir()
    (home / "in" / "linked").symlink_to("../../../secret")
    (home / "dangling").symlink_to(own.base.parent / "nothing")
    (home / "loop").symlink_to(home / "loop")
    return secret


def state_of(folder: Path) -> list[Any]:
    return [
        (str(path), path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]


def test_no_spelling_of_a_folder_reads_lists_writes_or_tells(own: Server, secret: Path) -> None:
    person, before = Person(own), state_of(own.base.parent / "secret")
    folders = [secret, *(path for path in secret.rglob("*"))]
    for path in folders:
        os.utime(path, ns=(0, path.stat().st_mtime_ns))  # reading it would show, where the disk notes that
    answers, told = set(), []
    spelled = hostile_folders(secret, own.base)
    assert len(spelled) >= 60
    prompts = [person.queue(make(text)) for text in spelled for make in (load_clips, caption_folder)]
    for prompt in prompts:
        history = person.result(prompt)
        error = error_of(history)
        answers.add(json.dumps([error["exception_message"], error["exception_type"], error["traceback"][-1]]))
        told.append(json.dumps([error["exception_message"], history["outputs"]]))
    assert len(answers) == 1, answers
    assert not [one for one in told if SECRET in one or str(own.base) in one or "secret" in one]
    assert [path for path in folders if path.stat().st_atime_ns] == []
    assert state_of(secret) == before
    log = own.log_text()
    assert SECRET not in log
    assert f'add to {own.base / "user" / "uni_vigu.yaml"}:\nfolders:\n  - "{secret}"' in log
    assert texts_of(person.run(caption_folder("uvg_sample_clips", overwrite=True)))


def test_links_in_an_open_folder_lead_nowhere(own: Server, secret: Path) -> None:
    home = clips_in(own.base / "input" / "mixed", mine="my words", theirs="")
    (home / "theirs.txt").symlink_to(secret / "a.txt")
    (home / "mine.detail.txt").symlink_to(secret / "a.txt")
    (home / "outside.mp4").symlink_to(secret / "a.mp4")
    (home / "outside.txt").write_text("a red circle")
    person, before = Person(own), state_of(secret)
    shown = json.dumps([person.run(make("mixed")) for make in (caption_folder, load_clips)])
    shown += json.dumps(person.run(caption_folder("mixed", overwrite=True)))
    assert "my words" in shown
    assert SECRET not in shown
    assert "outside" not in shown
    assert state_of(secret) == before


REVIEW = "/uni_vigu/review"


def reviewed(own: Server, what: str = "", body: Any = None, /, headers: Any = None, **query: str) -> tuple[int, bytes]:
    """What a route of the panel that reviews captions answers: its status and its body."""
    url = f"{own.url}{REVIEW}{what}?{urllib.parse.urlencode(query, errors='surrogateescape')}"
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if data is not None else {}
    try:
        with _OPEN.open(urllib.request.Request(url, data, {**given, **(headers or {})}), timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def to_review(own: Server, name: str) -> Path:
    """A folder with two clips whose captions wait, one of which has a text that links out."""
    home = clips_in(own.base / "input" / name, a="my words", b="")
    (home / "b.txt").symlink_to(own.base.parent / "secret" / "a.txt")
    (home / "outside.mp4").symlink_to(own.base.parent / "secret" / "a.mp4")
    entries = [
        {"clip": clip, "new": "new words", "format": "txt", "file_suffix": "", "backup": False}
        for clip in ("a.mp4", "b.mp4", "outside.mp4", "../../secret/a.mp4", "a.txt")
    ]
    (home / "captions.review.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return home


def test_no_spelling_of_a_folder_reaches_the_panel(own: Server, secret: Path) -> None:
    before, decision = state_of(secret), {"clip": "a.mp4", "decision": "accepted", "text": "x", "old": SECRET}
    answers = set()
    for text in hostile_folders(secret, own.base):
        answers.add(reviewed(own, folder=text))
        answers |= {reviewed(own, what, folder=text, clip="a.mp4") for what in ("/clip", "/frame")}
        answers.add(reviewed(own, "", {"folder": text, "decisions": [decision]}))
    ((status, body),) = answers
    assert status == 400
    assert b"the folder in the widget folder cannot be opened" in body
    assert state_of(secret) == before


def test_the_panel_gets_the_clips_of_the_folder_alone(own: Server, secret: Path) -> None:
    home, before = to_review(own, "reviewed"), state_of(secret)
    found = json.loads(reviewed(own, folder="reviewed")[1])
    assert {item["clip"]: item["old"] for item in found["items"]} == {"a.mp4": "my words", "b.mp4": ""}
    assert "input/reviewed/b.txt" in found["items"][1]["problem"]
    assert SECRET not in json.dumps(found)
    assert str(own.base) not in json.dumps(found)
    assert reviewed(own, "/clip", folder="reviewed", clip="a.mp4") == (200, (home / "a.mp4").read_bytes())
    status, picture = reviewed(own, "/frame", folder="reviewed", clip="a.mp4")
    assert (status, picture[:2]) == (200, b"\xff\xd8")
    up = os.path.relpath(secret, home)
    names = [
        "", ".", "..", "outside.mp4", f"{up}/a.mp4", f"./{up}/a.mp4", str(secret / "a.mp4"), f"//{secret}/a.mp4",
        "a.txt", "captions.review.jsonl", "../uvg_sample.mp4", "a.mp4\0", "a.mp4/", "..\\a.mp4", "a" * 5000, "\udcff",
        "none.mp4",
    ]  # fmt: skip
    answers = {reviewed(own, what, folder="reviewed", clip=name) for what in ("/clip", "/frame") for name in names}
    ((status, body),) = answers
    assert status == 400
    assert b"no clip of this name" in body
    decisions = [
        {"clip": name, "decision": "accepted", "text": "x", "old": SECRET}
        for name in ("b.mp4", *names)
        if len(name) < 4096
    ]
    outcomes = json.loads(reviewed(own, "", {"folder": "reviewed", "decisions": decisions})[1])["items"]
    assert {one["state"] for one in outcomes} == {"failed"}
    assert str(own.base) not in json.dumps(outcomes)
    assert state_of(secret) == before
    fine = {
        "folder": "reviewed",
        "decisions": [{"clip": "a.mp4", "decision": "accepted", "text": "é", "old": "my words", "new": "new words"}],
    }
    assert json.loads(reviewed(own, "", fine)[1])["items"][0]["state"] == "accepted"
    assert (home / "a.txt").read_text("utf-8") == "é"


def test_other_sites_and_other_things_than_decisions_are_refused(own: Server, secret: Path) -> None:
    home = to_review(own, "refused")
    decision = {"clip": "a.mp4", "decision": "accepted", "text": "x", "old": "my words", "new": "new words"}
    body = {"folder": "refused", "decisions": [decision]}
    for headers in (
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://elsewhere.example"},
        {"Origin": "null"}, {"Origin": own.url.replace("127.0.0.1", "localhost")},
    ):  # fmt: skip
        assert reviewed(own, "", body, headers)[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert reviewed(own, "", body, {"Content-Type": kind})[0] == 400
    wrong = (
        b"", b"[", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"folder": 3}', b'{"folder": "refused"}',
        {**body, "decisions": [{**decision, "decision": "erase"}]}, {**body, "decisions": [{**decision, "path": "/"}]},
        {**body, "decisions": [{**decision, "text": "x" * 200_000}]}, b" " * 9_000_000,
    )  # fmt: skip
    for one in wrong:
        status, said = reviewed(own, "", one)
        assert status == 400
        assert json.loads(said)["error"]
    assert (home / "a.txt").read_text() == "my words"
    assert reviewed(own, "", body, {"Origin": own.url})[0] == 200
    shutil.rmtree(home)
    assert b"the folder in the widget folder cannot be opened" in reviewed(own, "", body)[1]


def test_the_owner_opens_folders_in_one_file(own: Server, secret: Path) -> None:
    settings = own.base / "user" / "uni_vigu.yaml"
    opened = clips_in(own.base.parent / "opened", a="words of the opened folder")
    (own.base / "input" / "to_opened").symlink_to(opened)
    person = Person(own)
    for text in ("folders: 3", "folders: [relative]", "- a", "folders: [", ""):
        settings.write_text(text)
        assert error_of(person.run(load_clips(str(opened))))
    settings.write_text(f"folders:\n  - {json.dumps(str(opened))}\n")
    try:
        for text in (str(opened), "to_opened", f"{opened}/../opened"):
            shown = "\n".join(texts_of(person.run(load_clips(text))))
            assert "words of the opened folder" in shown
            assert str(own.base.parent) not in shown
        assert error_of(person.run(load_clips(str(secret))))
    finally:
        settings.unlink()
    assert error_of(person.run(load_clips(str(opened))))


def test_no_request_writes_the_owner_s_file(own: Server) -> None:
    settings = own.base / "user" / "uni_vigu.yaml"
    for file in (
        "../uni_vigu.yaml",
        "..%2Funi_vigu.yaml",
        "%2e%2e%2funi_vigu.yaml",
        "..%5Cuni_vigu.yaml",
        "a/../../uni_vigu.yaml",
    ):
        for quoted in (
            urllib.parse.quote(file, safe=""),
            urllib.parse.quote(urllib.parse.quote(file, safe=""), safe=""),
        ):
            with suppress(urllib.error.HTTPError):
                Person(own).post(f"/userdata/{quoted}?overwrite=true", {"folders": ["/"]})
    assert not settings.exists()


NAMES = (
    "../uvg_tiny.safetensors", "/etc/passwd", "../../secret/net.safetensors", "C:\\net.safetensors",
    "\\\\host\\net.safetensors", "..\\net.safetensors", "uni_vigu/../uvg_tiny.safetensors",
    "./uvg_tiny.safetensors", "/uvg_tiny.safetensors", "net\0.safetensors", "", " ", ".", "..", "none", "NUL",
    "https://host/net.safetensors", "net.safetensors\n",
)  # fmt: skip


@pytest.mark.parametrize("widget", ["checkpoint", "text_encoder", "vae"])
def test_only_files_that_are_listed_are_loaded(own: Server, widget: str) -> None:
    (own.base.parent / "net.safetensors").write_bytes(b"")
    person, messages = Person(own), set()
    names = [
        *(NAMES if widget == "checkpoint" else NAMES[:5]),
        str(own.base.parent / "net.safetensors"),
        "../../net.safetensors",
        "../../../net.safetensors",
    ]
    for name in names:
        message = error_of(person.run(workflow("video_to_text", UniViGULoader={widget: name})))["exception_message"]
        _, found, rest = message.partition("found in none of ComfyUI's folders")
        assert found, message
        messages.add(rest)
    assert len(messages) == 1


PREFIXES = (
    "../x", "../../x", "/tmp/x", "a/../../../x", "linked_out/x", "..\\..\\x", "\\\\host\\x", "C:\\x", "x\0", "x\n", "",
    " ", "//host/x", "a/b/../../../../x",
)  # fmt: skip


def test_files_are_written_only_where_they_belong(own: Server) -> None:
    out = own.base / "output"
    (own.base.parent / "elsewhere").mkdir()
    (out / "diffusion_models").mkdir(exist_ok=True)
    (out / "diffusion_models" / "linked_out").symlink_to(own.base.parent / "elsewhere")
    person, before = Person(own), {str(path) for path in own.base.parent.rglob("*.safetensors")}
    graph = workflow("video_to_text")
    for prefix in PREFIXES:
        save = {"model": ["1", 0], "filename_prefix": prefix, "dtype": "bf16"}
        history = person.run({"1": graph["1"], "2": {"class_type": "UniViGUSave", "inputs": save}})
        message = error_of(history).get("exception_message", "written")
        assert str(own.base) not in message
        if not message.startswith("filename_prefix is "):  # names with backslashes are plain ones here
            assert message == "written", (prefix, message)
            assert "\\" in prefix
    after = {str(path) for path in own.base.parent.rglob("*.safetensors")} - before
    assert all(Path(path).parent == out / "diffusion_models" for path in after)


# 2. What is mine stays mine, and nobody stops the server


def test_live_text_goes_only_to_the_page_that_asked(own: Server) -> None:
    me, other = Person(own, "me"), Person(own, "other")
    for one in (me, other):
        one.listen()
    clips_in(own.base / "input" / "private", a="")
    texts_of(me.run(caption_folder("private", overwrite=True)))
    Person(own).run(caption_folder("private", overwrite=True, prefix="again "))  # a script: nobody listens
    time.sleep(0.3)
    mine = [event for event in me.events if isinstance(event, bytes) and b"a.mp4" in event]
    assert mine
    assert not [event for event in other.events if isinstance(event, bytes) and b"a.mp4" in event]
    assert not [event for event in other.events if isinstance(event, str) and "a.mp4" in event]
    assert not [event for event in mine if b"again " in event]


def test_no_name_and_no_prompt_stops_the_server(own: Server) -> None:
    """Half of a surrogate pair in an error's text ended the thread that runs all prompts."""
    person, odd = Person(own), own.base / "input" / "odd"
    odd.mkdir()
    (odd / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"no video")
    (odd / "\u202egpj.mp4").write_bytes(b"no video")
    shutil.copy(SAMPLES.parent / "uvg_sample.mp4", odd / os.fsdecode(b"fine\xe9.mp4"))
    (odd / os.fsdecode(b"fine\xe9.txt")).write_text("a red circle")
    for make in (caption_folder, load_clips):
        shown = "\n".join(set(texts_of(person.run(make("odd")))))  # the node says what the preview shows
        assert shown.count("caf\\udce9.mp4") == 1
        assert "\\u202egpj.mp4" in shown
    for name, changes in (
        ("text_to_video", {"UniViGUTextEncode": {"text": "a \udcff circle"}}),
        ("video_to_text", {"VideoToTextDenoise": {"template": "a \ud800 ___"}}),
        ("caption_folder", {"UniViGUCaptionFolder": {"folder": "\udcff"}}),
        ("video_to_text", {"UniViGULoader": {"checkpoint": "\udcff"}}),
    ):
        assert "half of a character" in error_of(person.run(workflow(name, **changes)))["exception_message"]
    assert texts_of(person.run(workflow("video_to_text")))


NO_NUMBERS = [
    ("text_to_video", "UniFlowSampler", "guidance", float("nan"), "guidance (-1 = auto) is nan; expected a number"),
    ("text_to_video", "UniFlowSampler", "shift", float("nan"), "shift (0 = auto) is nan; expected a number"),
    ("text_to_video", "UniFlowSampler", "denoise", float("nan"), "denoise is nan; expected a number"),
    ("video_to_text", "VideoToTextDenoise", "temperature", float("nan"), "temperature (-1 = auto) is nan"),
    ("video_to_text", "VideoToTextDenoise", "top_p", float("nan"), "top_p is nan; expected a number"),
    ("video_to_text", "UniViGUEncodeVideo", "fps", float("nan"), "fps (-1 = auto) is nan; expected a number"),
]
CONNECTED = [  # what is connected is not held to the widget's range
    ("text_to_video", "UniFlowSampler", "guidance", float("nan"), "guidance (-1 = auto) is nan; expected a number"),
    ("text_to_video", "UniFlowSampler", "guidance", 2000.0, "guidance (-1 = auto) is 2000.0; expected a number from"),
    ("video_to_text", "VideoToTextDenoise", "top_p", 2.0, "top_p is 2.0; expected a number above 0, at most 1"),
]


def test_a_value_that_is_no_number_is_named_by_its_widget(own: Server) -> None:
    person = Person(own)
    for case in (*NO_NUMBERS, *CONNECTED):
        name, node, widget, value, words = case
        source = {"class_type": "PrimitiveFloat", "inputs": {"value": value}}
        graph = workflow(name, **{node: {widget: ["number", 0] if case in CONNECTED else value}})
        found = error_of(person.run({**graph, "number": source} if case in CONNECTED else graph))
        assert found["exception_message"].startswith(words)


def test_messages_name_no_folder_of_the_server(own: Server) -> None:
    person, home = Person(own), own.base / "input" / "broken"
    home.mkdir()
    (home / "broken.mp4").write_bytes(b"no video")
    (own.base / "models" / "diffusion_models" / "broken.safetensors").write_bytes(b"no file")
    (home / "empty").mkdir()
    shown = []

    def told(history: Any) -> str:
        error = error_of(history)
        return json.dumps(history).replace(json.dumps(error.get("traceback")), "")  # ComfyUI's own, of its files

    for graph in (
        caption_folder("broken"), load_clips("broken"), caption_folder("broken/empty"), load_clips("broken/empty"),
        workflow("video_to_text", UniViGULoader={"checkpoint": "broken.safetensors"}),
    ):  # fmt: skip
        history = person.run(graph)
        error = error_of(history)
        shown.append(error["exception_message"] + error["exception_type"])
        assert str(own.base) not in told(history)
        assert str(ROOT) not in told(history)
    graph = workflow("video_to_text")
    save = {"model": ["1", 0], "filename_prefix": "shown", "dtype": "bf16"}
    preview = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
    shown += texts_of(person.run({"1": graph["1"], "2": {"class_type": "UniViGUSave", "inputs": save}, "3": preview}))
    assert shown[-1] == "output/diffusion_models/shown_00001_.safetensors"
    assert not [text for text in shown if str(own.base) in text or str(ROOT) in text or str(Path.home()) in text]
    assert "input/broken/broken.mp4: cannot be opened" in shown[0]
    assert "models/diffusion_models/broken.safetensors" in shown[4]


# 3. Nothing runs twice for nothing


def named_by(connected: bool, folder: str, graph: dict[str, Any]) -> dict[str, Any]:
    """``graph`` with the folder of its node 2 in the widget or from another node."""
    graph["name"] = {"class_type": "PrimitiveString", "inputs": {"value": folder}}
    graph["2"]["inputs"]["folder"] = ["name", 0] if connected else folder
    return graph


@pytest.mark.parametrize("connected", [False, True])
def test_a_folder_is_captioned_again_only_when_something_changed(own: Server, connected: bool) -> None:
    name = f"twice {connected}"
    person, home = Person(own), clips_in(own.base / "input" / name, a="", b="")

    def ran(**changes: Any) -> bool:
        history = person.run(named_by(connected, name, caption_folder(name, **changes)))
        texts_of(history)
        return "2" not in next(
            data["nodes"] for kind, data in history["status"]["messages"] if kind == "execution_cached"
        )

    assert ran()
    written = {path.name: path.read_bytes() for path in home.glob("*.txt")}
    assert len(written) == 2
    assert not ran()
    for path in home.iterdir():
        os.utime(path)
    assert not ran()
    (home / "a.txt").unlink()
    assert ran()
    assert not ran()
    assert {path.name: path.read_bytes() for path in home.glob("*.txt")} == written
    (home / "b.txt").write_text("my own words")
    assert ran()
    assert not ran()
    shutil.copy(home / "a.mp4", home / "c.mp4")
    assert ran()
    assert not ran()
    shutil.copy(SAMPLES.parent / "uvg_sample.mp4", home / "c.mp4")
    assert ran()
    (home / "notes.md").write_text("nothing that counts")
    assert not ran()
    assert ran(overwrite=True)
    assert not ran(overwrite=True)


@pytest.mark.parametrize("connected", [False, True])
def test_training_is_repeated_only_when_its_data_changed(own: Server, connected: bool) -> None:
    name = f"to train {connected}"
    person, home = Person(own), own.base / "input" / name
    clips_in(home, a="a red circle moves left", b="a blue square moves up")
    graph = named_by(connected, name, load_clips(name))
    graph["5"] = {
        "class_type": "UniViGUTrain",
        "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "videos": ["2", 0], "prompts": ["2", 1],
            "stage": "recall", "trains": "lora", "steps": 1, "batch": 1, "learning_rate": 0.001, "rank": 1, "seed": 0,
            "sample_every": 0, "filename_prefix": "t", "all_in_one": False, "accumulate": 1, "width": 0, "height": 0,
            "frames": 0,
        },
    }  # fmt: skip

    def ran() -> bool:
        history = person.run(graph)
        if "needs the package" in str(error_of(history)):
            pytest.skip("accelerate or peft is not installed beside ComfyUI")
        assert history["status"]["status_str"] == "success", error_of(history)
        return "5" not in next(
            data["nodes"] for kind, data in history["status"]["messages"] if kind == "execution_cached"
        )

    assert ran()
    assert not ran()
    for path in (*home.iterdir(), ROOT / "models" / "uvg_tiny.safetensors"):
        os.utime(path)
    assert not ran()
    (home / "a.txt").write_text("a green circle moves left")
    assert ran()
    assert not ran()


# 4. Many prompts of two people


CLIPS = sorted(path.name for path in SAMPLES.glob("*.mp4"))


def good(number: int) -> dict[str, Any]:
    clip = f"uvg_sample_clips/{CLIPS[number % len(CLIPS)]}"
    return workflow("video_to_text", LoadVideo={"file": clip}, VideoToTextDenoise={"seed": number % 2, "steps": 4})


def bad(number: int) -> dict[str, Any]:
    kinds = (
        workflow("video_to_text", VideoToTextDenoise={"template": "no blank"}),
        caption_folder("/etc"),
        workflow("video_to_text", UniViGULoader={"checkpoint": "gone.safetensors"}),
        workflow("text_to_video", UniViGUTextEncode={"text": "circle " * 200}),
    )
    return kinds[number // 4 % len(kinds)]


def some(people: list[Person], numbers: range, alone: Callable[[int], list[str]]) -> None:
    """Prompts of two people, every fourth bad and every fifth cancelled; the good ones say what they say alone."""
    prompts = []
    for number in numbers:
        person = people[number % 2]
        prompts.append(person.queue(bad(number) if number % 4 == 3 else good(number)))
        if number % 5 == 4:  # while it runs, or before
            time.sleep(0.05 * (number % 3))
            person.post("/interrupt", {"prompt_id": prompts[-1]})
    for number, prompt in zip(numbers, prompts, strict=True):
        history = people[number % 2].result(prompt)
        if number % 4 == 3:
            assert error_of(history) or number % 5 == 4, number
        elif number % 5 != 4 or history["status"]["status_str"] == "success":
            assert sorted(texts_of(history)) == alone(number), number


def used(server: Server) -> tuple[int, int, int]:
    """Memory in MB, threads and open files of a server."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status["VmRSS"].split()[0]) // 1024, int(status["Threads"]), len(os.listdir(f"/proc/{server.pid}/fd"))


# Threads of asyncio's pool, which it starts as it needs them.
POOL = min(32, (os.cpu_count() or 1) + 4)


def rounds(own: Server, count: int) -> None:
    people = [Person(own, "first"), Person(own, "second")]
    for person in people:
        person.listen()
    kinds = range(2 * len(CLIPS))
    known = [sorted(texts_of(people[0].run(good(number)))) for number in kinds]
    some(people, range(count // 2), lambda number: known[number % len(known)])
    before = used(own)
    some(people, range(count // 2, count), lambda number: known[number % len(known)])
    after = used(own)
    assert after[0] <= before[0] + 60, (before, after)
    assert after[1] <= before[1] + POOL, (before, after)
    assert after[2] <= before[2] + 4, (before, after)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not show what a process holds")
def test_prompts_of_two_people_do_not_touch_each_other(own: Server) -> None:
    rounds(own, 12)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not show what a process holds")
def test_two_hundred_prompts_leave_nothing_behind(own: Server) -> None:
    rounds(own, 200)
