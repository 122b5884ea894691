"""The tests inside ComfyUI on several installations of it, one after the other, and with the newest front end.

    python tests/in_comfyui/versions.py FOLDER... [--front-end newest] [-- arguments for pytest]

A FOLDER is a ComfyUI, e.g. ``~/comfy/ComfyUI``; its Python is found as ``in_comfyui_host`` says. Each runs all the
tests of this folder with the front end it is installed with; the last one runs the browser's tests again with
``--front-end``: ``newest`` (from PyPI), a version such as 1.58.1, a folder with an index.html, or ``none``.

The last lines say what ran, what was skipped and why, and which installation was missing. The exit code is 0 when every
run passed; one that is missing, or of which nothing ran, has not passed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from in_comfyui_host import ComfyUI, NoComfyUI, find_comfyui  # noqa: E402

PACKAGE = "comfyui-frontend-package"


@dataclass
class Row:
    """What came of one run. ``counts``: passed, failed and skipped tests; ``reasons``: of those that were skipped."""

    name: str
    missing: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def passed(self) -> bool:
        return not self.missing and self.counts["passed"] > 0 and not self.counts["failed"]

    def __str__(self) -> str:
        if self.missing:
            return f"MISSING  {self.name}: {self.missing}"
        verdict = "passed " if self.passed else "FAILED " if self.counts["failed"] else "NOT RUN"
        counts = ", ".join(f"{self.counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
        reasons = [f"\n           skipped {count}: {reason}" for reason, count in self.reasons.most_common()]
        return f"{verdict}  {self.name}: {counts}{''.join(reasons)}"


def installation(folder: Path) -> ComfyUI:
    """The ComfyUI in a folder. Raises NoComfyUI."""
    os.environ["COMFYUI_PATH"] = str(folder)
    return find_comfyui()


def name_of(comfyui: ComfyUI) -> str:
    return f"ComfyUI {comfyui.version} ({comfyui.folder})"


def run(name: str, comfyui: ComfyUI, tests: Path, arguments: list[str], front_end: Path | None = None) -> Row:
    """The tests of a folder or file, in an installation."""
    print(f"== {name}", flush=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "COMFYUI_PATH": str(comfyui.folder)}
    environment.pop("COMFYUI_FRONT_END", None)
    if front_end is not None:
        environment["COMFYUI_FRONT_END"] = str(front_end)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(tests), f"--junitxml={report}", *arguments]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if not report.is_file():
            return Row(name, missing=f"pytest ended with exit code {code} before any test")
        return read_report(name, report)


def read_report(name: str, report: Path) -> Row:
    """A JUnit report as a row."""
    row = Row(name)
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        bad = case.find("failure") is not None or case.find("error") is not None
        row.counts["failed" if bad else "passed" if skipped is None else "skipped"] += 1
        if skipped is not None:
            row.reasons[skipped.get("message", "")] += 1
    return row


def front_end_folder(wanted: str, into: Path) -> Path:
    """The folder of a front end: as given, or installed ``into`` a folder from PyPI. Raises NoComfyUI."""
    folder = Path(wanted).expanduser()
    if not folder.is_dir():
        package = PACKAGE if wanted == "newest" else f"{PACKAGE}=={wanted}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(into), package]
        if subprocess.run(pip, check=False).returncode:
            raise NoComfyUI(f"pip could not install {package}")
        folder = into / PACKAGE.replace("-", "_") / "static"
    if not (folder / "index.html").is_file():
        raise NoComfyUI(f"{folder} has no index.html")
    return folder.absolute()


def front_end_version(folder: Path) -> str:
    """Of a front end that pip put there; else the folder's name."""
    found = sorted(folder.parents[1].glob(f"{PACKAGE.replace('-', '_')}-*.dist-info"))
    return found[0].name.split("-")[1].removesuffix(".dist") if found else str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--front-end", default="newest", help="newest (default), a version, a folder, or none")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    settings, arguments = parser.parse_args(given[:cut]), given[cut + 1 :]
    rows: list[Row] = []
    last: ComfyUI | None = None
    for folder in settings.folders:
        try:
            last = installation(folder)
        except NoComfyUI as reason:
            rows.append(Row(str(folder), missing=str(reason)))
            continue
        rows.append(run(name_of(last), last, HERE, arguments))
    if settings.front_end != "none":
        with tempfile.TemporaryDirectory() as into:
            name = f"front end {settings.front_end}"
            try:
                if last is None:
                    raise NoComfyUI("no ComfyUI to try it in")
                chosen = front_end_folder(settings.front_end, Path(into))
                name = f"front end {front_end_version(chosen)} in {name_of(last)}"
                panel = str(HERE / "test_review_panel.py")
                rows.append(run(name, last, HERE / "test_browser.py", [panel, *arguments], chosen))
            except NoComfyUI as reason:
                rows.append(Row(name, missing=str(reason)))
    print("\n" + "\n".join(map(str, rows)))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
