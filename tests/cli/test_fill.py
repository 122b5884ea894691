"""``--first-frame``, ``--last-frame``, ``--hold`` and ``--template``: parts in, the rest out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from uvg_core.cli.main import main
from uvg_core.media.video import ClipSpec, probe, read_clip

CLIP = Path(__file__).parents[2] / "samples" / "uvg_sample.mp4"
FEW = ["--steps", "2", "--device", "cpu", "-q"]


def test_a_first_frame_is_the_clips_first_and_a_template_its_caption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.mp4"
    template = "a large red circle moves ___ quickly on a navy background"
    command = ["joint", "--template", template, "--first-frame", str(CLIP), "--sheet", str(tmp_path / "s.png")]
    assert main([*command, "-o", str(out), *FEW]) == 0
    text = capsys.readouterr().out.strip()
    assert text.startswith("a large red circle moves ")
    assert text.endswith(" quickly on a navy background")
    assert out.with_suffix(".txt").read_text() == text + "\n"
    made, own = (read_clip(path, ClipSpec(1, 48, 48)).pixels.float() for path in (out, CLIP))
    assert float((made - own).square().mean()) < 255**2 / 10**2.5  # 25 dB, through the VAE and two codecs
    assert (probe(out).frames, probe(out).fps) == (9, 4)


def test_outside_the_mask_the_file_shows_through(tmp_path: Path) -> None:
    out, mask, black = tmp_path / "made.mp4", tmp_path / "mask.png", torch.zeros(96, 96, dtype=torch.uint8)
    black[:, 48:] = 255
    Image.fromarray(black.numpy()).save(mask)
    command = ["generate", "a blue star", "--hold", str(CLIP), "--mask", str(mask), "-o", str(out), *FEW]
    assert main(command) == 0
    made, own = (read_clip(path, ClipSpec(9, 288, 288, fps=4.0)).pixels[:, :, :140].float() for path in (out, CLIP))
    assert float((made - own).square().mean()) < 255**2 / 10**4  # 40 dB, through the codec alone
    assert (probe(out).width, probe(out).fps) == (288, 4)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["joint"], 2, "pass a prompt or --template"),
        (["joint", "--template", "a red circle"], 2, "has no blank"),
        (["joint", "x", "--mask", str(CLIP)], 2, "name the clip with --hold"),
        (["generate", "x", "--hold", str(CLIP), "--last-frame", str(CLIP)], 2, "leave out --first-frame"),
        (["generate", "--from-latent", "x.safetensors", "--first-frame", str(CLIP)], 2, "a finished clip"),
        (["generate", "x", "--first-frame", str(CLIP), "-o", str(CLIP)], 2, "uvg_sample.mp4"),
        (["joint", "x", "--fit", "pad"], 1, "name one with --hold"),
        (["generate", "x", "--hold", str(CLIP)], 1, "name a picture with --mask"),
        (["generate", "x", "--last-frame", "none.png"], 1, "none.png: no such file"),
        (
            ["joint", "x", "--first-frame", str(CLIP), "--last-frame", str(CLIP), "--frames", "5"],
            1,
            "all of a clip of 5",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with nullcontext() if code == 1 else pytest.raises(SystemExit, match=str(code)):
        assert main([*flags, *FEW]) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
