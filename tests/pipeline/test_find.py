"""Clips are found by their captions and ranked by a judge; the index follows what becomes of the files."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from uvg_core.content import content_of
from uvg_core.errors import UniViGUError
from uvg_core.media.video import Clip
from uvg_core.media.video.shots import Cutting, Shot
from uvg_core.pipeline.find import INDEX, WHOLE, Index, Updated
from uvg_core.pipeline.wording import adapted, words_of

WORDS = ("a red circle", "a blue star", "a green ring")


class Stand:
    """Describes a clip by the number that its file holds, and makes other words than its own as likely as that. A film
    is a file of several numbers, a shot of a second for each."""

    together, window = 2, 1.0

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint, self.captioned, self.judged = fingerprint, 0, 0

    def read(self, path: Path) -> Clip:
        info: Any = None
        return Clip(torch.full((1, 2, 2, 3), int(path.read_text()), dtype=torch.uint8), info, "")

    def shots(self, path: Path, how: Cutting, done: float) -> Iterator[Shot]:
        for place, number in enumerate(path.read_text().split()):
            if place + 1 > done:
                yield Shot(place, place + 1, torch.full((1, 2, 2, 3), int(number), dtype=torch.uint8))

    def latents(self, clips: Sequence[Clip | Shot]) -> Tensor:
        return torch.stack([clip.pixels[:1, :1, :1, :1].float() for clip in clips])

    def captions(self, latents: Tensor) -> list[str]:
        self.captioned += len(latents)
        return [WORDS[int(latent.sum()) % 3] for latent in latents]

    def likelihoods(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        self.judged += len(texts)
        return latents.flatten(1).sum(1) * torch.tensor([float(text not in WORDS) for text in texts])


SHOTS = Cutting(every=1.0)  # which needs no PySceneDetect


@pytest.fixture(autouse=True)
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A file lasts a second for each number that it holds; the files that were asked for it."""
    asked: list[Path] = []

    def probe(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(duration=float(len(path.read_text().split())))

    monkeypatch.setattr("uvg_core.pipeline.clip_index.probe", probe)
    return asked


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_text(str(number))
    return tmp_path


def names(folder: Path, query: str, stand: Stand, top: int = 5, cutting: Cutting = WHOLE) -> tuple[list[str], Updated]:
    with closing(Index(folder)) as index:
        report = index.update(stand, cutting)
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


# Films


def hits(folder: Path, stand: Stand, query: str = "a dog", cutting: Cutting = SHOTS) -> list[tuple[Any, ...]]:
    with closing(Index(folder)) as index:
        assert not index.update(stand, cutting).failed
        return [(one.clip.name, one.shot, one.start, one.end) for one in index.find(query, stand, 9)]


WHOLE_CLIPS = [(f"{number}.mp4", None, None, None) for number in (2, 1, 0)]
SHOTS_OF_FILM = [("film.mp4", number, number - 1, number) for number in (4, 3, 2, 1)]


def test_shots_of_a_film_are_found_with_their_times(clips: Path) -> None:
    (clips / "film.mp4").write_text("3 4 5 6")
    stand = Stand()
    assert hits(clips, stand) == [*SHOTS_OF_FILM, *WHOLE_CLIPS]
    assert stand.captioned == 7
    star = hits(clips, stand, "a blue star")
    assert {star[0][1], star[1][1]} == {None, 2}  # clip 1 and the number 4
    assert (hits(clips, stand), stand.captioned) == ([*SHOTS_OF_FILM, *WHOLE_CLIPS], 7)


def test_both_ways_of_seeing_a_film_stay_in_the_index(clips: Path) -> None:
    class Patient(Stand):
        def read(self, path: Path) -> Clip:
            info: Any = None
            return Clip(torch.full((1, 2, 2, 3), int(path.read_text().split()[0]), dtype=torch.uint8), info, "")

    (clips / "film.mp4").write_text("3 4 5 6")
    stand, whole = Patient(), [("film.mp4", None, None, None), *WHOLE_CLIPS]
    for cutting, expected in ((WHOLE, whole), (SHOTS, [*SHOTS_OF_FILM, *WHOLE_CLIPS])) * 2:
        assert hits(clips, stand, cutting=cutting) == expected
        with closing(Index(clips)) as index:
            assert index.of_others(stand) == 0
            assert index.of_others(Stand("other")) == 4
    assert stand.captioned == 8
    hits(clips, stand, cutting=Cutting(every=2.0))  # another way of dividing
    assert stand.captioned == 12


def test_a_film_that_moves_or_has_a_copy_is_described_once_and_one_that_changes_anew(clips: Path) -> None:
    film, stand = clips / "film.mp4", Stand()
    film.write_text("3 4 5 6")
    hits(clips, stand)
    film.rename(clips / "moved.mp4")
    assert hits(clips, stand)[0] == ("moved.mp4", 4, 3, 4)
    (clips / "copy.mp4").write_text("3 4 5 6")
    assert {name for name, shot, *_ in hits(clips, stand) if shot} == {"moved.mp4", "copy.mp4"}
    assert stand.captioned == 7
    (clips / "copy.mp4").unlink()
    (clips / "moved.mp4").write_text("30 4 5 6")
    assert hits(clips, stand)[0] == ("moved.mp4", 1, 0, 1)
    assert stand.captioned == 11
    (clips / "moved.mp4").unlink()
    assert hits(clips, stand) == WHOLE_CLIPS


def test_what_was_described_of_a_film_stays_after_a_stop(clips: Path) -> None:
    class Stopped(Stand):
        def captions(self, latents: Tensor) -> list[str]:
            if self.captioned >= 5:
                raise KeyboardInterrupt
            return super().captions(latents)

    (clips / "film.mp4").write_text("3 4 5 6 7")
    with pytest.raises(KeyboardInterrupt):
        hits(clips, Stopped())
    stand = Stand()
    assert [shot for _, shot, *_ in hits(clips, stand)] == [5, 4, 3, 2, 1, None, None, None]
    assert stand.captioned == 3


def test_only_long_files_are_films_and_each_is_asked_for_its_length_once(clips: Path, lengths: list[Path]) -> None:
    (clips / "film.mp4").write_text("3 4 5 6")
    (clips / "picture.png").write_text("8")
    hits(clips, Stand(), cutting=SHOTS)
    assert sorted(one.name for one in lengths) == ["0.mp4", "1.mp4", "2.mp4", "film.mp4"]
    hits(clips, Stand(), cutting=SHOTS)
    assert len(lengths) == 4


def test_a_film_of_one_shot_is_a_clip_like_others(clips: Path) -> None:
    class Steady(Stand):
        def shots(self, path: Path, how: Cutting, done: float) -> Iterator[Shot]:
            yield from list(super().shots(path, how, done))[:1]

    (clips / "film.mp4").write_text("3 4 5 6")
    (clips / "film.txt").write_text("my cat")
    with closing(Index(clips)) as index:
        index.update(stand := Steady(), SHOTS)
        found = {one.clip.name: (one.caption, one.when) for one in index.find("cat", stand, 9)}
    assert found["film.mp4"] == ("my cat", "")
    assert len(found) == 4


def test_a_film_that_fails_is_named_and_what_one_lacks_is_noted(clips: Path) -> None:
    class Damaged(Stand):
        def shots(self, path: Path, how: Cutting, done: float) -> Iterator[Shot]:
            if path.name == "bad.mp4":
                raise UniViGUError(f"{path}: no frame of it can be decoded")
            for shot in super().shots(path, how, done):
                yield Shot(shot.start, shot.end, shot.pixels, "it breaks off" if shot.end == 4 else "")

    for name in ("film.mp4", "bad.mp4"):
        (clips / name).write_text(f"3 4 5 {len(name)}")
    found, report = names(clips, "a dog", Damaged(), 9, SHOTS)
    assert len(found) == 7
    assert [path.name for path, _ in report.failed] == ["bad.mp4"]
    assert [(path.name, words.split(";")[0]) for path, words in report.notes] == [("film.mp4", "it breaks off")]


def test_where_pyscenedetect_is_missing_nothing_is_described(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    stand = Stand()
    assert hits(clips, stand, cutting=Cutting(shots=True)) == WHOLE_CLIPS  # there is no film
    (clips / "film.mp4").write_text("3 4 5 6")
    with pytest.raises(UniViGUError, match="pip install scenedetect-headless"):
        hits(clips, stand, cutting=Cutting(shots=True))
    assert stand.captioned == 3


VERSION_1 = """
CREATE TABLE clips (id INTEGER PRIMARY KEY, name BLOB UNIQUE, size INTEGER, changed INTEGER,
    content TEXT, model TEXT, beside TEXT, caption TEXT, likelihood REAL);
CREATE TABLE described (model TEXT, content TEXT, caption TEXT, shape TEXT, latent BLOB, PRIMARY KEY (model, content));
CREATE INDEX contents ON clips (content);
CREATE TABLE files (state TEXT PRIMARY KEY, content TEXT);
CREATE TABLE folder (path BLOB);
CREATE VIRTUAL TABLE words USING fts5(caption, tokenize = 'porter unicode61');
PRAGMA application_id = 1431717702; PRAGMA user_version = 1;
"""


def test_an_index_made_before_films_is_brought_up(clips: Path) -> None:
    with closing(sqlite3.connect(clips / INDEX, isolation_level=None)) as old:
        old.executescript(VERSION_1)
        for number in range(3):
            clip = clips / f"{number}.mp4"
            facts, content = clip.stat(), content_of(clip)
            row = number + 5, clip.name.encode(), facts.st_size, facts.st_mtime_ns, content, "one", "", "an old dog"
            old.execute("INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
            old.execute("INSERT INTO words (rowid, caption) VALUES (?, ?)", (number + 5, "an old dog"))
            latent = torch.full((1, 1, 1, 1), number).half().numpy().tobytes()
            old.execute("INSERT INTO described VALUES ('one', ?, 'an old dog', '1 1 1 1', ?)", (content, latent))
    stand = Stand()
    (clips / "film.mp4").write_text("3 4 5 6")
    assert hits(clips, stand, "a dogfish")[:4] == SHOTS_OF_FILM
    with closing(Index(clips)) as index:
        assert {path.name for path in index.by_words("old", 9).values()} == {"0.mp4", "1.mp4", "2.mp4"}
    assert stand.captioned == 4
    with closing(sqlite3.connect(clips / INDEX)) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (2,)


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
