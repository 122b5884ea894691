"""``evaluate``: names, seeds and layouts as the benchmarks' own programs look for them, resumed and in shards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from uvg_core.cli.main import main
from uvg_core.pipeline import scores
from uvg_core.pipeline.evaluate import read_items, read_prompts, read_references, samples_of, written_as
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.pipeline.workers import Shard

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "samples" / "uvg_sample.mp4"
FEW = ["--steps", "1", "--device", "cpu", "-q"]
CAPTIONS = {"one": "a red circle moves left", "two": "a blue square moves up slowly"}
REFERENCES = {
    "one": ["a red circle moves to the left", "a circle"],
    "two": ["the blue square goes up", "a square, up!"],
}


def put(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def dream(*ids: int) -> str:
    """Lines as in DREAM-1k.jsonl."""
    rows = []
    for id in ids:
        told = {"type": "text", "text": "", "reference": f"What happens in {id}.", "video": None}
        asked = {"type": "text", "text": "Describe the video in detail.", "reference": None, "video": None}
        messages = [{"role": "user", "content": [asked]}, {"role": "assistant", "content": [told]}]
        rows.append(
            {"messages": messages, "dataset": "DREAM/movie", "idx": id, "vid": id, "extra_info": {"events": []}}
        )
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("one", "two"):
        shutil.copy(CLIP, folder / f"{name}.mp4")
    return folder


# Videos


def found_by_vbench(folder: Path, info: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What VBench's build_full_info_json and its static filter look for, in our words."""
    names = {path.name for path in folder.iterdir()}
    found: dict[str, list[str]] = {}
    for entry in info:
        prompt = entry["prompt_en"]
        found[prompt] = [name for i in range(5) if (name := f"{prompt}-{i}.mp4") in names]
        if "temporal_flickering" in entry["dimension"]:
            found[prompt] = [name for name in names if re.sub(r"-\d+$", "", Path(name).stem) == prompt]
    return found


def test_vbench_finds_all_clips_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = [
        {"prompt_en": "a still  frame, 1.5", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a dog, 3-4", "dimension": ["scene", "color"]},
        {"prompt_en": "a dog, 3-4", "dimension": ["human_action"]},
    ]
    monkeypatch.setattr("uvg_core.cli.evaluate.write_video", lambda path, *_: path.write_bytes(b"clip"))
    monkeypatch.setattr(Pipeline, "generate", lambda *_, **__: None)
    assert main(["evaluate", "videos", put(tmp_path / "i.json", info), "-o", str(tmp_path / "out"), "-q"]) == 0
    found = found_by_vbench(tmp_path / "out", info)
    assert {prompt: len(names) for prompt, names in found.items()} == {"a still  frame, 1.5": 25, "a dog, 3-4": 5}
    assert json.loads((tmp_path / "out" / "evaluate.json").read_text())["made"] == 30


def test_shards_and_a_stopped_run_make_the_clips_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = put(tmp_path / "prompts.txt", "a red circle\n# a comment\na blue square\n")
    command = ["evaluate", "videos", prompts, "--samples", "2", *FEW]
    one, parts = tmp_path / "one", tmp_path / "parts"
    generate, calls = Pipeline.generate, 0

    def stopped(self: Pipeline, prompt: str, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return generate(self, prompt, **how)

    monkeypatch.setattr(Pipeline, "generate", stopped)
    assert main([*command, "-o", str(one)]) == 130
    assert [path.name for path in one.glob("*.mp4")] == ["a red circle-0.mp4"]
    monkeypatch.undo()
    assert main([*command, "-o", str(one)]) == 0
    assert "3 made, 1 already there" in capsys.readouterr().out
    for shard in ("2/2", "1/2"):
        assert main([*command, "-o", str(parts), "--shard", shard]) == 0
    files = {path.name: path.read_bytes() for path in one.iterdir()}
    assert files == {path.name: path.read_bytes() for path in parts.iterdir()}
    assert len(set(files.values())) == 5  # four seeds, four clips
    report = json.loads(files["evaluate.json"])
    assert (report["settings"]["seed"], report["settings"]["steps"], len(set(report["seeds"].values()))) == (0, 1, 4)
    assert str(tmp_path) not in json.dumps(report)
    assert main([*command, "-o", str(one), "--seed", "1"]) == 1
    assert "seed was 0 and is 1" in capsys.readouterr().err


def test_prompts_that_are_no_names_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = put(tmp_path / "prompts.txt", f"a/b\n{'x' * 248}\n{'é' * 125}\n.hidden\n")
    assert main(["evaluate", "videos", prompts, "-o", str(tmp_path / "out"), "--samples", "1", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 videos: 0 there, 1 to make\n")
    assert "contains '/'" in out
    assert "longer than the 248 bytes" in out
    assert not (tmp_path / "out").exists()


def test_clips_that_fail_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no codec")

    monkeypatch.setattr(Pipeline, "generate", fail)
    assert main(["evaluate", "videos", put(tmp_path / "p.txt", "a\nb"), "-o", str(tmp_path / "out"), "-q"]) == 1
    out = capsys.readouterr().out
    assert out.count("RuntimeError: no codec") == 3
    assert "3 clips in a row failed" in out


def test_seeds_follow_from_the_prompt_and_not_from_its_place(tmp_path: Path) -> None:
    few = samples_of(read_prompts(Path(put(tmp_path / "a.txt", "b\n"))), 7)
    more = samples_of(read_prompts(Path(put(tmp_path / "b.txt", "a\nb\n"))), 7)
    assert few == more[5:]
    assert few != samples_of({"b": 5}, 8)
    assert [Shard(i, 3).part(range(7)) for i in (1, 2, 3)] == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["videos", "p.txt"], "name what to write with -o"),
        (["videos", "p.txt", "-o", "x", "--shard", "3/2"], "expected PART/PARTS"),
        (["videos", "p.txt", "-o", "x", "--references", "y"], "--references applies to evaluate captions only"),
        (["captions", "x.json", "-o", "x.json", "--samples", "5"], "--samples applies to evaluate videos only"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *flags])
    assert words in capsys.readouterr().err


# Captions


def test_captions_of_a_folder_resumed_in_shards_equal_one_run(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "bad.mp4").write_bytes(b"no clip")
    one, parts = tmp_path / "one.json", tmp_path / "parts.json"
    command = ["evaluate", "captions", str(clips), *FEW, "--temperature", "1"]
    assert main([*command, "-o", str(one)]) == 1
    assert "bad.mp4" in capsys.readouterr().out
    results = json.loads(one.read_text())
    assert [result["image_id"] for result in results] == ["one", "two"]
    record = [json.loads(line) for line in Path(f"{one}.record.jsonl").read_text().splitlines()]
    assert len({line["seed"] for line in record}) == 2
    (clips / "bad.mp4").unlink()
    for shard in ("2/2", "1/2"):
        assert main([*command, "-o", str(parts), "--shard", shard]) == 0
    assert json.loads(parts.read_text()) == results
    record[0]["caption"] = "mine"
    Path(f"{one}.record.jsonl").write_text(json.dumps(record[0]) + '\n{"clip": "two", "capt')  # a kill cut it
    assert main([*command, "-o", str(one)]) == 0
    assert json.loads(one.read_text()) == [{"image_id": "one", "caption": "mine"}, results[1]]
    report = Path(f"{one}.evaluate.json").read_text()
    assert (json.loads(report)["planned"], json.loads(report)["made"]) == (2, 2)
    assert str(tmp_path) not in report


def test_dream_1k_is_read_by_its_scorer(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(clips / "one.mp4", clips / "1.mp4")
    source, out = put(tmp_path / "DREAM-1k.jsonl", dream(1, 2)), tmp_path / "predictions.jsonl"
    assert main(["evaluate", "captions", source, "--clips", str(clips), "-o", str(out), *FEW]) == 1
    assert "DREAM/movie_2: found no clip" in capsys.readouterr().out
    (row,) = map(json.loads, out.read_text("utf-8").splitlines())
    # tarsier's extract_item_for_eval: texts of the assistant that have a reference
    said = [part for part in row["messages"][1]["content"] if part["type"] == "text" and part.get("reference")]
    assert said[0]["text"].strip()
    assert (row["dataset"].split("/")[0], row["idx"], row["extra_info"]) == ("DREAM", 1, {"events": []})


MSRVTT = {
    "videos": [{"video_id": "one", "split": "test"}, {"video_id": "two", "split": "train"}],
    "sentences": [{"video_id": id, "caption": text} for id, texts in REFERENCES.items() for text in texts],
}
VATEX = [{"videoID": id, "enCap": texts, "chCap": []} for id, texts in REFERENCES.items()]
COCO = {
    "images": [{"id": 7, "file_name": "one.mp4"}, {"id": 8, "file_name": "two.mp4"}],
    "annotations": [
        {"image_id": 7 if id == "one" else 8, "caption": text} for id, texts in REFERENCES.items() for text in texts
    ],
}
VDC = "".join(json.dumps({"video_id": id, "captions": {"short_caption": "x"}}) + "\n" for id in CAPTIONS)


@pytest.mark.parametrize(
    ("name", "data", "form", "ids"),
    [
        ("msrvtt.json", MSRVTT, "msrvtt", ["one"]),
        ("vatex.json", VATEX, "vatex", ["one", "two"]),
        ("coco.json", COCO, "coco", [7, 8]),
        ("vdc.jsonl", VDC, "vdc", ["one", "two"]),
    ],
)
def test_annotation_files_name_their_clips_and_layout(
    name: str, data: Any, form: str, ids: list[Any], clips: Path, tmp_path: Path
) -> None:
    found, items = read_items(Path(put(tmp_path / name, data)), clips, None)
    assert (found, [item.id for item in items]) == (form, ids)
    assert all(item.clip is not None for item in items)
    written = json.loads(written_as(found, items, {str(id): "words" for id in ids}))
    if form == "vdc":  # process_vdc_result.py
        assert {one["doc"]["video_id"]: one["resps"][0][0] for one in written} == dict.fromkeys(ids, "words")
    else:  # pycocotools' loadRes
        assert written == [{"image_id": id, "caption": "words"} for id in ids]
        assert list(read_references(tmp_path / name).values()) == list(REFERENCES.values())


@pytest.mark.parametrize("data", [{"images": []}, [], [{"video": 1}], [3], "no json", {"sentences": 1}])
def test_other_files_are_no_annotations(data: Any, clips: Path, tmp_path: Path) -> None:
    from uvg_core.errors import UniViGUError

    with pytest.raises(UniViGUError, match=r"a\.json"):
        read_items(Path(put(tmp_path / "a.json", data)), clips, None)


# Scores


def test_scores_equal_pycocoevalcap_on_the_same_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocoevalcap.cider.cider", reason="needs pycocoevalcap: pip install 'pycocoevalcap>=1.2'")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    notes: list[str] = []
    if shutil.which("java"):
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        told = PTBTokenizer().tokenize({id: [{"caption": one} for one in some] for id, some in REFERENCES.items()})
        said = PTBTokenizer().tokenize({id: [{"caption": one}] for id, one in CAPTIONS.items()})
        expected = {f"Bleu_{n}": score for n, score in enumerate(Bleu(4).compute_score(told, said)[0], 1)}
        expected |= {"ROUGE_L": Rouge().compute_score(told, said)[0], "CIDEr": Cider().compute_score(told, said)[0]}
        expected |= {"METEOR": Meteor().compute_score(told, said)[0], "tokenizer": "PTB", "clips": 2}
        assert scores.scores_of(CAPTIONS, REFERENCES, notes.append) == expected
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = scores.scores_of(CAPTIONS, REFERENCES, notes.append)
    assert "METEOR" not in found
    assert (found["tokenizer"], len(notes)) == ("plain", 1)
    assert 0.5 < found["ROUGE_L"] < 1
    capsys.readouterr()


def test_references_without_the_package_are_refused_before_the_work(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.cider.cider", None)
    command = ["evaluate", "captions", str(clips), "-o", str(tmp_path / "c.json")]
    assert main([*command, "--references", put(tmp_path / "r.json", VATEX)]) == 1
    assert "pycocoevalcap>=1.2" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_a_run_with_references_reports_scores(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uvg_core.cli.evaluate.require_scorers", lambda: None)
    monkeypatch.setattr("uvg_core.cli.evaluate.scores_of", lambda said, told, _: {"clips": len(said.keys() & told)})
    out = tmp_path / "c.json"
    command = ["evaluate", "captions", put(tmp_path / "coco.json", COCO), "--clips", str(clips), "-o", str(out), *FEW]
    assert main([*command, "--references", str(tmp_path / "coco.json"), "--shard", "1/2"]) == 0
    assert json.loads(Path(f"{out}.evaluate.json").read_text())["scores"] is None
    assert main([*command, "--references", str(tmp_path / "coco.json")]) == 0
    report = json.loads(Path(f"{out}.evaluate.json").read_text())
    assert (report["scores"], report["benchmark"], report["references"]) == ({"clips": 2}, "coco.json", "coco.json")
