"""A real ComfyUI for the tests of ``in_comfyui``: where it is, a server of it, and a process inside its Python.

ComfyUI runs in processes of its own, in a fresh base directory that holds this pack as custom node and nothing else.
The tests' own process never imports it.

    COMFYUI_PATH         its folder; else the one that this pack is installed in; else where comfy-cli puts it
    COMFYUI_PYTHON       its interpreter; else the virtual environment in it or beside it; else this one
    COMFYUI_PYTHONPATH   put before PYTHONPATH for it; else a folder ``cpu_torch`` beside it, where there is one (for
                         installations whose torchvision and torchaudio were built for CUDA and whose torch was not)
    COMFYUI_FRONT_END    a folder with a front end (its index.html) in place of the one that it is installed with
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from uvg_core.checkpoint.keys import ENCODER_PREFIX, TOKENIZER_KEY, VAE_PREFIX, from_native
from uvg_core.checkpoint.read import open_weights
from uvg_core.checkpoint.write import ALL_IN_ONE_PREFIX

ROOT = Path(__file__).absolute().parents[1]
HERE = ROOT / "tests" / "in_comfyui"
PACK = "Uni-ViGU"  # the folder's name in custom_nodes
# What ComfyUI has no use for, where the system allows no link and the pack is copied.
NOT_COPIED = (".*", "__pycache__", "tests", "docs", "benchmarks", "out", "build", "dist")
START_SECONDS = 180.0
STOP_SECONDS = 10.0
# No telephone, no browser, and a database that other ComfyUIs of the same folder do not lock.
OPTIONS = ("--cpu", "--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")


def options_for(device: str) -> tuple[str, ...]:
    """Start options for ComfyUI on ``device``: "cpu" or "cuda"."""
    return tuple(option for option in OPTIONS if option != "--cpu" or device == "cpu")


class NoComfyUI(Exception):
    """Why there is no ComfyUI to test in."""


@dataclass(frozen=True)
class ComfyUI:
    """An installation: its folder, its interpreter, and the environment of its processes."""

    folder: Path
    python: Path
    environment: Mapping[str, str]

    @property
    def options(self) -> tuple[str, ...]:
        """Start options that belong to the installation."""
        front_end = self.environment.get("COMFYUI_FRONT_END")
        return ("--front-end-root", front_end) if front_end else ()

    @property
    def version(self) -> str:
        """What it says of itself, e.g. ``0.33.0``."""
        said = re.search(r'"([\d.]+)"', (self.folder / "comfyui_version.py").read_text(encoding="utf-8"))
        return said[1] if said else "of an unknown version"


def slow_graph(seed: int, nodes: int = 60) -> dict[str, Any]:
    """Some twenty seconds of work in many small nodes, or longer with more ``nodes``; ``seed`` keeps it out of the
    server's cache."""
    graph: dict[str, Any] = {
        "0": {"class_type": "EmptyImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1, "color": seed}}
    }
    for number in range(1, nodes):
        inputs = {"image": [str(number - 1), 0], "blur_radius": 15, "sigma": 5.0}
        graph[str(number)] = {"class_type": "ImageBlur", "inputs": inputs}
    graph[str(nodes)] = {"class_type": "PreviewImage", "inputs": {"images": [str(nodes - 1), 0]}}
    return graph


def load_client() -> ModuleType:
    """``clients/api_client.py`` as a module, by its path: the folder is no package."""
    name = "uvg_api_client"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "clients" / "api_client.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def find_comfyui() -> ComfyUI:
    """The installation to test in. Raises NoComfyUI."""
    folder = _find_folder()
    environment = dict(os.environ)
    stand_in = folder.parent / "cpu_torch"
    first = os.environ.get("COMFYUI_PYTHONPATH") or (str(stand_in) if stand_in.is_dir() else "")
    environment["PYTHONPATH"] = os.pathsep.join(path for path in (first, os.environ.get("PYTHONPATH")) if path)
    environment["PYTHONUNBUFFERED"] = "1"  # a log that is read while it is written
    return ComfyUI(folder, _find_python(folder), environment)


def _find_folder() -> Path:
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().absolute()
        if not _is_comfyui(folder):
            raise NoComfyUI(f"COMFYUI_PATH={named} is no ComfyUI: it has no main.py and comfy/")
        return folder
    home = Path.home()
    for folder in (ROOT.parent.parent, home / "comfy" / "ComfyUI", home / "Documents" / "comfy" / "ComfyUI"):
        if _is_comfyui(folder):
            return folder
    raise NoComfyUI("no ComfyUI: set COMFYUI_PATH or install one with comfy-cli in ~/comfy/ComfyUI")


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _find_python(folder: Path) -> Path:
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        program = shutil.which(named)
        if program is None:
            raise NoComfyUI(f"COMFYUI_PYTHON={named} is no program")
        return Path(program).absolute()
    for place in (folder, folder.parent):
        for name in (".venv", "venv"):
            for path in (place / name / "bin" / "python", place / name / "Scripts" / "python.exe"):
                if path.is_file():
                    return path
    if not all(importlib.util.find_spec(name) for name in ("aiohttp", "torchsde")):
        raise NoComfyUI(f"{folder} has no virtual environment .venv or venv in it or beside it: set COMFYUI_PYTHON")
    return Path(sys.executable)


def make_base(folder: Path, pack: Path = ROOT) -> Path:
    """A base directory for ComfyUI in an empty folder: this pack as its only custom node, no model, no file."""
    for name in ("custom_nodes", "models/checkpoints", "models/diffusion_models", "input", "output"):
        (folder / name).mkdir(parents=True)
    link = folder / "custom_nodes" / PACK
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(pack, link, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return folder


def put_stand_ins(models: Path) -> None:
    """Files under the names that the workflow first_try asks for: the embedded model, taken apart as the released one
    comes, in ``models`` of a base directory."""
    graph = json.loads((ROOT / "workflows" / "api" / "first_try.json").read_text(encoding="utf-8"))
    names = next(node["inputs"] for node in graph.values() if node["class_type"] == "UniViGULoader")
    whole = open_weights(ROOT / "models" / "uvg_tiny.safetensors")

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): whole.read(name) for name in whole.tensors if name.startswith(prefix)}

    network = {from_native(name, "release"): tensor for name, tensor in part(ALL_IN_ONE_PREFIX).items()}
    # The release keeps its text rotations' frequencies beside the weights: they show how wide a head is (32 here).
    network["rotary_emb_text.inv_freq"] = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    for folder in ("uni_vigu", "text_encoders", "vae"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    torch.save({"model": network, "step": 7}, models / "uni_vigu" / names["checkpoint"])
    encoder = part(ENCODER_PREFIX) | {"spiece_model": whole.read(TOKENIZER_KEY)}
    save_file(encoder, models / "text_encoders" / names["text_encoder"])
    save_file(part(VAE_PREFIX), models / "vae" / names["vae"])


@dataclass
class Process:
    """A process of ComfyUI that writes ``log`` and ends when its standard input does, thus never outlives the tests."""

    comfyui: ComfyUI
    base: Path
    options: tuple[str, ...] = OPTIONS
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        make_base(self.base)
        self.log = self.base / "log.txt"

    def start(self, *command: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [str(self.comfyui.python), *command],
                stdin=subprocess.PIPE,
                stdout=log if stdout is None else stdout,
                stderr=log,
                cwd=self.comfyui.folder,
                env=self.comfyui.environment,
            )

    def log_text(self) -> str:
        """All that the process has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_words(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process by the end of its standard input, by force when that is not enough."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server(Process):
    """A running ComfyUI server.

    ``url``: its address. ``base``: its base directory (``models/checkpoints``, ``input``, ``output`` and so on).
    ``seconds``: how long it took to start. Use it as a context; raises RuntimeError with the end of its log when it
    does not start.
    """

    url: str
    seconds: float

    def __enter__(self) -> Server:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        options = ("--port", str(port), "--base-directory", str(self.base), *self.options, *self.comfyui.options)
        self._process = self.start(str(HERE / "serve.py"), str(self.comfyui.folder / "main.py"), *options)
        while not self._answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() - started > START_SECONDS:
                stop(self._process)
                what = "ended" if ended else f"did not answer for {START_SECONDS:.0f} s"
                raise RuntimeError(f"ComfyUI {what} at its start; the end of its log:\n{self.last_words()}")
            time.sleep(0.2)
        self.seconds = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/system_stats", timeout=10) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Inside(Process):
    """A process in ComfyUI's Python with this pack loaded, which calls the functions of ``in_comfyui/checks``.

    ``pack_problem``: what ComfyUI said when it did not take the pack, or None. ``base``, ``seconds`` as for Server.
    Use it as a context; raises RuntimeError with the end of its log when it does not start.
    """

    pack_problem: str | None
    seconds: float

    def __enter__(self) -> Inside:
        started = time.monotonic()
        self._end: str | None = None
        self._process = self.start(
            str(HERE / "worker.py"),
            str(self.comfyui.folder),
            str(self.base),
            PACK,
            *("--base-directory", str(self.base), *self.options),
            stdout=subprocess.PIPE,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.pack_problem = self._answer(START_SECONDS)["pack_problem"]
        except RuntimeError:
            stop(self._process)
            raise
        self.seconds = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)

    def call(self, module: str, function: str, /, timeout: float = 300, **arguments: Any) -> Any:
        """The JSON value that ``function`` of ``checks/<module>.py`` returns for JSON ``arguments``.

        It runs under inference mode, as nodes do; coroutines are awaited. What it raises fails the test, with the
        traceback from over there. After ``timeout`` seconds the process is given up, and with it all later calls.
        """
        __tracebackhide__ = True
        request = {"module": module, "function": function, "arguments": arguments}
        try:
            if self._end is not None:
                raise RuntimeError(self._end)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._answer(timeout)
        except (RuntimeError, OSError) as error:
            self._end = f"the process inside ComfyUI is gone since {module}.{function}: {error}"
            self._process.kill()
            pytest.fail(f"{self._end}\nthe end of its log:\n{self.last_words()}", pytrace=False)
        if "traceback" in answer:
            pytest.fail(f"in ComfyUI, {module}.{function}:\n{answer['traceback']}", pytrace=False)
        return answer["value"]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise RuntimeError(f"no answer for {seconds:g} s") from None
        if not line:
            raise RuntimeError(f"it ended with exit code {self._process.wait()}; its log:\n{self.last_words()}")
        return dict(json.loads(line))
