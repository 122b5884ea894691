"""Stories: which frames each run goes on from, how long shots are, and what an interrupted story keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from uvg_core import Sampling, UniViGUError
from uvg_core.cli.main import main
from uvg_core.media.video import ClipSpec, probe, read_clip
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.pipeline.story import Draw, Drawing, Shot, Story, Told, Window, tell

FRAMES = 9


class Counting:
    """A ``draw`` whose clips begin with what they go on from; new frames are numbered on through all runs."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int], int]] = []
        self.next = 0

    def __call__(self, prompt: str, begin: Tensor | None, seed: int) -> Window:
        held = [] if begin is None else begin[:, 0, 0, 0].tolist()
        self.asked.append((prompt, held, seed))
        new = range(self.next, self.next + FRAMES - len(held))
        self.next = new.stop
        values = torch.tensor([*held, *new], dtype=torch.uint8)
        return Window(values[:, None, None, None].expand(-1, 2, 2, 3), f"text {len(self.asked)}")


def told(story: Story, draw: Draw, first: Tensor | None = None, fps: float = 4.0) -> list[Told]:
    return list(tell(story, draw, fps=fps, frames=FRAMES, seed=7, first=first))


def numbers(shots: list[Told]) -> list[list[int]]:
    return [shot.pixels[:, 0, 0, 0].tolist() for shot in shots]


def test_shots_go_on_from_the_last_frames_of_the_one_before() -> None:
    draw = Counting()
    shots = told(Story(shots=(Shot(prompt="a"), Shot(prompt="b"), Shot(prompt="c", seed=3)), keep="at night"), draw)
    assert draw.asked == [
        ("a at night", [], 7),
        ("b at night", [4, 5, 6, 7, 8], 7),
        ("c at night", [8, 9, 10, 11, 12], 3),
    ]
    assert numbers(shots) == [list(range(9)), [9, 10, 11, 12], [13, 14, 15, 16]]
    assert [shot.texts for shot in shots] == [("text 1",), ("text 2",), ("text 3",)]


def test_a_shot_of_any_length_goes_on_from_itself_and_is_cut_where_it_ends() -> None:
    draw = Counting()
    shots = told(Story(shots=(Shot(prompt="a", seconds=4.0), Shot(prompt="b", seconds=0.25), Shot(prompt="c"))), draw)
    assert [len(shot.pixels) for shot in shots] == [16, 1, 4]
    assert [held for _, held, _ in draw.asked] == [
        [],
        [4, 5, 6, 7, 8],
        [8, 9, 10, 11, 12],
        [11, 12, 13, 14, 15],
        [
            12,
            13,
            14,
            15,
            17,
        ],
    ]
    assert numbers(shots)[1] == [17]  # the run before made 16 too, behind the end of its shot
    assert len(shots[0].texts) == 3


def test_a_cut_begins_with_nothing_and_less_overlap_forms_more() -> None:
    draw = Counting()
    story = Story(shots=(Shot(prompt="a"), Shot(prompt="b"), Shot(prompt="c", cut=True), Shot(prompt="d")), overlap=1)
    shots = told(story, draw)
    assert [held for _, held, _ in draw.asked] == [[], [8], [], [25]]
    assert [len(shot.pixels) for shot in shots] == [9, 8, 9, 8]


def test_a_picture_to_begin_with_is_the_first_frame_of_the_film() -> None:
    draw = Counting()
    first = torch.full((1, 2, 2, 3), 200, dtype=torch.uint8)
    shots = told(Story(shots=(Shot(prompt="a"), Shot(prompt="b"))), draw, first)
    assert numbers(shots) == [[200, *range(8)], [8, 9, 10, 11]]
    assert draw.asked[1][1] == [3, 4, 5, 6, 7]


def test_an_overlap_beyond_the_clip_leaves_four_frames_to_form() -> None:
    draw = Counting()
    shots = told(Story(shots=(Shot(prompt="a"), Shot(prompt="b")), overlap=81), draw)
    assert [len(shot.pixels) for shot in shots] == [9, 4]
    with pytest.raises(UniViGUError, match="the clips have 1 frame"):
        list(tell(Story(shots=(Shot(prompt="a"), Shot(prompt="b"))), draw, fps=4, frames=1))


def test_a_story_is_lines_or_yaml(tmp_path: Path) -> None:
    lines = Story.parse("# a film\n\n  a dog runs \na dog: it sleeps\n")
    assert [shot.prompt for shot in lines.shots] == ["a dog runs", "a dog: it sleeps"]
    text = (
        "keep: ', at night'\noverlap: 9\nshots:\n- a dog runs\n- {prompt: it sleeps, seconds: 2, seed: 4, cut: true}\n"
    )
    story = Story.parse(text)
    assert story.shots == (Shot(prompt="a dog runs"), Shot(prompt="it sleeps", seconds=2.0, seed=4, cut=True))
    assert (story.overlap, story.prompt_of(story.shots[0])) == (9, "a dog runs, at night")
    (tmp_path / "s.yaml").write_text(text)
    assert Story.read(tmp_path / "s.yaml") == story


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"s\.txt: holds no prompt"),
        ("# nothing\n", r"s\.txt: holds no prompt"),
        ("shots: []", "found 0 shots; expected 1 to"),
        ("shots: red", "shots"),
        ("shots:\n- {prompt: a, second: 2}", "line 2, column 1.*second"),
        ("shots:\n- {prompt: ' '}", "prompt of a shot is empty"),
        ("shots:\n- {prompt: a, seconds: 0}", "line 2.*seconds"),
        ("shots: [a]\noverlap: 4", "overlap is 4; expected 4n"),
        ("shots: [a\n", "not valid YAML"),
        ("a\n" * 1001, "1,001 shots; expected 1 to 1,000"),
    ],
)
def test_what_is_no_story_is_said_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(UniViGUError, match=words):
        Story.read(tmp_path / "s.txt")


# With the embedded model


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return Pipeline(device="cpu")


@pytest.mark.parametrize("joint", [False, True])
def test_what_a_run_begins_with_is_what_its_clip_shows(pipe: Pipeline, joint: bool) -> None:
    draw = Drawing(pipe, sampling=Sampling(steps=2), joint=joint)
    one = draw("a red circle", None, 3)
    two = draw("a red circle", one.pixels[-5:], 3)
    error = (two.pixels[:5].float() - one.pixels[-5:].float()).square().mean()
    assert float(error) < 255**2 / 10**2.3  # 23 dB, through the VAE twice
    assert bool(one.text) == joint


def test_a_story_that_was_interrupted_goes_on(
    tmp_path: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was drawn is not drawn again, a changed shot and those behind it are, and nothing stays when it is done."""
    monkeypatch.chdir(tmp_path)
    story, drawn = tmp_path / "s.txt", list[str]()
    story.write_text("a red circle\na red circle moves left\na red circle grows\n")
    usual = Pipeline.draw

    def draw(self: Pipeline, prompt: str, **options: object) -> object:
        if prompt == "a red circle grows" and len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(prompt)
        return usual(self, prompt, **options)

    monkeypatch.setattr(Pipeline, "draw", draw)
    command = ["generate", "--story", "s.txt", "-o", "f.mp4", "--steps", "1", "--device", "cpu", "--scale", "1"]
    assert main(command) == 130
    assert "f.shots: the clips made so far; the same command" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.shots", "s.txt"]
    story.write_text("a red circle\na red circle moves up\na red circle grows\n")
    drawn += ["interrupted"]
    assert main(command) == 0
    assert drawn[3:] == ["a red circle moves up", "a red circle grows"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.mp4", "s.txt"]
    assert probe("f.mp4").frames == 17
    said = capsys.readouterr().err
    assert "shot 3, 3.25 to 4.25 s: a red circle grows" in said


def test_a_joint_story_writes_a_caption_for_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.mp4"
    few = ["--steps", "1", "--device", "cpu", "-q"]
    assert main(["joint", "a red circle", "--shots", "2", "-o", str(out), *few]) == 0
    words = capsys.readouterr().out.strip("\n").split("\n")
    assert out.with_suffix(".txt").read_text().strip("\n").split("\n") == words
    assert len(words) == 2
    assert len(read_clip(out, ClipSpec(99, 48, 48, fps=4.0)).pixels) >= 13


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["generate", "x", "--story", "s.txt"], "pass one of these"),
        (["generate", "--story", "s.txt", "--text", "x"], "leave it out with --story"),
        (["generate", "--story", "s.txt", "--hold", "a.mp4"], "only --first-frame fits"),
        (["generate", "--story", "s.txt", "--best-of", "2", "--keep-all"], "leave it out with --story"),
        (["generate", "--story", "s.txt", "-o", "-"], "written to a file"),
        (["joint", "--story", "s.txt", "--shots", "2"], "prompts of its own"),
        (["joint", "x", "--shots", "2", "--sheet", "s.png"], "leave them out"),
    ],
)
def test_what_does_not_go_with_a_story(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
