"""Clips are found by their captions and ranked by a judge; the index follows what becomes of the files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from uvg_core.errors import UniViGUError
from uvg_core.media.video import Clip
from uvg_core.pipeline.find import INDEX, Index, Updated
from uvg_core.pipeline.wording import adapted, words_of

WORDS = ("a red circle", "a blue star", "a green ring")


class Stand:
    """Describes a clip by the number that its file holds, and makes other words than its own as likely as that."""

    together = 2

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint, self.captioned, self.judged = fingerprint, 0, 0

    def read(self, path: Path) -> Clip:
        info: Any = None
        return Clip(torch.full((1, 2, 2, 3), int(path.read_text()), dtype=torch.uint8), info, "")

    def latents(self, clips: Sequence[Clip]) -> Tensor:
        return torch.stack([clip.pixels[:1, :1, :1, :1].float() for clip in clips])

    def captions(self, latents: Tensor) -> list[str]:
        self.captioned += len(latents)
        return [WORDS[int(latent.sum()) % 3] for latent in latents]

    def likelihoods(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        self.judged += len(texts)
        return latents.flatten(1).sum(1) * torch.tensor([float(text not in WORDS) for text in texts])


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_text(str(number))
    return tmp_path


def names(folder: Path, query: str, stand: Stand, top: int = 5) -> tuple[list[str], Updated]:
    with closing(Index(folder)) as index:
        report = index.update(stand)
        return [one.clip.name for one in index.find(query, stand, top)], report


def test_the_order_is_that_of_the_scores(clips: Path) -> None:
    assert names(clips, "a dog", Stand())[0] == ["2.mp4", "1.mp4", "0.mp4"]
    assert names(clips, "a dog", Stand(), top=1)[0] == ["2.mp4"]


def test_what_a_caption_says_needs_no_judge_and_its_own_likelihood_is_kept(clips: Path) -> None:
    with closing(Index(clips)) as index:
        index.update(stand := Stand())
        assert [one.score for one in index.find("a star", stand) if "star" in one.caption] == [0]
        assert stand.judged == 4  # two captions do not say it, before and after
        index.find("a dog", stand)
        assert stand.judged == 8  # three, and one that was not judged before


def test_only_new_content_is_captioned(clips: Path) -> None:
    stand = Stand()
    names(clips, "a dog", stand)
    (clips / "0.mp4").rename(clips / "moved.mp4")
    (clips / "1.mp4").unlink()
    assert names(clips, "a dog", stand)[0] == ["2.mp4", "moved.mp4"]
    assert stand.captioned == 3
    (clips / "2.mp4").write_text("30")
    assert names(clips, "a dog", stand)[0] == ["2.mp4", "moved.mp4"]
    assert stand.captioned == 4


def test_another_model_describes_anew_and_the_first_one_stays(clips: Path) -> None:
    one, other = Stand(), Stand("other")
    for stand in (one, other, one):
        names(clips, "a dog", stand)
    assert (one.captioned, other.captioned) == (3, 3)


def test_captions_beside_clips_are_used_and_none_is_written(clips: Path) -> None:
    (clips / "0.txt").write_text("my cat")
    stand = Stand()
    with closing(Index(clips)) as index:
        index.update(stand)
        assert [one.caption for one in index.find("cat", stand) if one.clip.name == "0.mp4"] == ["my cat"]
    assert stand.captioned == 2
    assert sorted(one.name for one in clips.iterdir()) == sorted([INDEX, "0.mp4", "0.txt", "1.mp4", "2.mp4"])


def test_what_was_described_stays_after_a_stop(clips: Path) -> None:
    class Stopped(Stand):
        def captions(self, latents: Tensor) -> list[str]:
            if self.captioned:
                raise KeyboardInterrupt
            return super().captions(latents)

    with pytest.raises(KeyboardInterrupt):
        names(clips, "a", Stopped())
    stand = Stand()
    assert len(names(clips, "a dog", stand)[0]) == 3
    assert stand.captioned == 1


@pytest.mark.parametrize("query", ['star AND "', "star*", "NEAR(star", "caption:star", "-star"])
def test_signs_in_a_query_are_not_syntax(clips: Path, query: str) -> None:
    assert len(names(clips, query, Stand())[0]) == 3


def test_a_query_without_words_and_a_damaged_index_are_refused(clips: Path) -> None:
    with pytest.raises(UniViGUError, match="expected words"):
        names(clips, "?!", Stand())
    (clips / INDEX).write_bytes(b"no database" * 100)
    with pytest.raises(UniViGUError, match="delete it"):
        names(clips, "a dog", Stand())


def test_words_of_any_script_are_found(clips: Path) -> None:
    for name, text in (("0", "एक हिन्दी फिल्म"), ("1", "赤い丸が左へ動く"), ("2", "Ein Großer, roter Kreis")):
        (clips / f"{name}.txt").write_text(text, "utf-8")
    with closing(Index(clips)) as index:
        index.update(Stand())
        found = {query: index.by_words(query, 5) for query in ("हिन्दी", "左へ", "GROSSER circles", "kreis!")}
        assert [len(ids) for ids in found.values()] == [1, 1, 1, 1]
        assert len({*map(tuple, found.values())}) == 3
    with pytest.raises(UniViGUError, match="expected words"):
        words_of(" ¿? \0")


def test_a_broken_clip_is_named_and_the_others_are_found(clips: Path) -> None:
    (clips / "1.mp4").write_text("broken")
    found, report = names(clips, "a dog", Stand())
    assert found == ["2.mp4", "0.mp4"]
    assert [path.name for path, _ in report.failed] == ["1.mp4"]


def test_an_index_elsewhere_is_of_one_folder(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with closing(Index(clips, elsewhere / "index")) as index:
        index.update(Stand())
    assert not (clips / INDEX).exists()
    (elsewhere / "9.mp4").write_text("9")
    with closing(Index(elsewhere, elsewhere / "sub.index")) as index:
        index.update(Stand())
    (other := elsewhere / "other").mkdir()
    (other / "4.mp4").write_text("4")
    with closing(Index(other, elsewhere / "index")) as index, pytest.raises(UniViGUError, match=str(clips)):
        index.update(Stand())
    moved = clips.rename(clips.with_name("moved"))
    stand = Stand()
    with closing(Index(moved, elsewhere / "index")) as index:
        index.update(stand)
        assert {one.clip.parent for one in index.find("a dog", stand)} == {moved}
    assert stand.captioned == 0


def test_clips_of_another_model_are_counted(clips: Path) -> None:
    with closing(Index(clips)) as index:
        index.update(Stand())
        assert (index.of_others(Stand()), index.of_others(Stand("other"))) == (0, 3)
        index.update(Stand("other"))
        assert (index.of_others(Stand()), index.of_others(Stand("other"))) == (0, 0)


def test_while_another_process_describes_what_is_there_is_found(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names(clips, "a dog", Stand())
    (clips / "3.mp4").write_text("3")
    monkeypatch.setattr("uvg_core.locks.Claims.claimed", lambda *_: nullcontext(False))
    found, report = names(clips, "a dog", Stand())
    assert report.busy
    assert found == ["2.mp4", "1.mp4", "0.mp4"]


def test_a_folder_without_clips_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UniViGUError, match="found no videos"):
        Index(tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(UniViGUError, match="expected a folder of videos"):
        Index(tmp_path / "nowhere")


CAPTION = "a small red circle moves left slowly and a large blue star grows quickly on a navy background"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("a red circle", CAPTION),
        ("A large blue star; on a navy background, a small red circle.", CAPTION),
        ("on a navy background a large blue star grows quickly and a red small circle slowly moves left", CAPTION),
        ("a green circle", CAPTION.replace("red", "green")),
        ("a small red star moves left slowly and a large blue circle grows quickly", None),
        ("a large blue ring grows quickly and a red circle", CAPTION.replace("star", "ring")),
        ("mein Hund", "mein Hund"),
    ],
)
def test_a_caption_changes_as_little_as_the_query_demands(query: str, expected: str | None) -> None:
    if expected is None:
        expected = CAPTION.replace("circle", "*").replace("star", "circle").replace("*", "star")
    assert adapted(CAPTION, query) == expected
