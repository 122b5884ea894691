"""The shipped workflows on a real ComfyUI server, through its API: what comes back must be right, not only there."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_comfyui_host import Server, load_client, put_stand_ins
from PIL import Image

from recipes.worlds.detector import read_world
from recipes.worlds.grammar import BACKGROUNDS, COLOURS, World
from uvg_core.media.video import ClipSpec, probe, read_clip

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "workflows"
NAMES = (
    "text_to_video",
    "video_to_text",
    "joint",
    "few_words",
    "image_to_video",
    "story",
    "caption_folder",
    "caption_shots",
    "find_clips",
    "rank_captions",
    "best_of",
    "edit_by_words",
    "train_two_stages",
    "first_try",
)
FROZEN = sorted((Path(__file__).parent / "frozen").glob("*/api/*.json"))
SAMPLE = "a large red circle moves right quickly on a navy background"
api = load_client()
Graph = dict[str, Any]


def graph_of(name: str) -> Graph:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def ids_of(graph: Graph, class_type: str) -> list[str]:
    return [id_ for id_, node in graph.items() if node["class_type"] == class_type]


def changed(graph: Graph, class_type: str, **inputs: Any) -> Graph:
    """A copy with inputs of the first node of a kind changed."""
    other = copy.deepcopy(graph)
    other[ids_of(graph, class_type)[0]]["inputs"].update(inputs)
    return other


def without_its_steps(graph: Graph) -> Graph:
    """Without the picture of how a joint run took shape, which takes longer than the run; test_record.py has it."""
    drawn = ids_of(graph, "UniViGUTrajectory")
    return {
        id_: node
        for id_, node in graph.items()
        if id_ not in drawn and node["inputs"].get("images") not in [[n, 0] for n in drawn]
    }


def prompt_of(graph: Graph) -> str:
    return next(
        n["inputs"]["text"] for n in graph.values() if n["class_type"] == "UniViGUTextEncode" and n["inputs"]["text"]
    )


def texts(result: Any) -> list[str]:
    return [text for group in result.texts.values() for text in group]


def video_in(client: Any, result: Any, folder: Path) -> Path:
    record = next(r for r in result.files if r.filename.endswith((".mp4", ".webm")))
    return client.download(record, folder)


def seen_in(path: Path) -> tuple[str, str]:
    """Colour of the object and of the background, read from the pixels."""
    world = world_in(path)
    return ("", "") if world is None else (world.shapes[0].colour, world.background)


def world_in(path: Path) -> World | None:
    return read_world(read_clip(path, ClipSpec(9, 48, 48)).pixels)


def said_in(text: str) -> tuple[str, str]:
    words = text.split()
    return next((w for w in words if w in COLOURS), ""), next((w for w in words if w in BACKGROUNDS), "")


def test_every_workflow_has_its_api_form_and_thumbnail() -> None:
    assert sorted(p.stem for p in WORKFLOWS.glob("*.json")) == sorted(NAMES)
    order = (ROOT / "web" / "templates.js").read_text(encoding="utf-8").split("const ORDER = [")[1].split("]")[0]
    assert re.findall(r'"(\w+)"', order) == list(NAMES)
    for name in NAMES:
        canvas = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        kinds = sorted(n["class_type"] for n in graph_of(name).values())
        notes = ("Note", "MarkdownNote")
        assert sorted(n["type"] for n in canvas["nodes"] if n["type"] not in notes) == kinds, name
        assert (WORKFLOWS / f"{name}.jpg").stat().st_size < 100_000


def test_the_first_try_names_its_files_where_they_go_and_where_they_are(client: Any, server: Server) -> None:
    """The same in the canvas (ComfyUI offers the downloads) and in what the node says of a missing file."""
    canvas = json.loads((WORKFLOWS / "first_try.json").read_text(encoding="utf-8"))
    (loader,) = (node for node in canvas["nodes"] if node["type"] == "UniViGULoader")
    graph = graph_of("first_try")
    names = ("checkpoint", "text_encoder", "vae")
    listed = {entry["name"]: entry for entry in loader["properties"]["models"]}
    assert list(listed) == loader["widgets_values"][:3] == [graph["1"]["inputs"][name] for name in names]
    for entry in listed.values():  # the browser's test puts them there too
        (server.base / "models" / entry["directory"] / entry["name"]).unlink(missing_ok=True)
    with pytest.raises(api.ClientError) as missing:
        client.run(graph)
    assert f"models/{listed['uni_vigu.pth']['directory']}" in str(missing.value)
    for name in names:  # each missing in turn, the others there
        put_stand_ins(server.base / "models")
        entry = listed[graph["1"]["inputs"][name]]
        (server.base / "models" / entry["directory"] / entry["name"]).unlink()
        with pytest.raises(api.ClientError) as missing:
            client.run(changed(graph, "UniFlowSampler", seed=len(name)))
        for word in (entry["name"], entry["url"], f"models/{entry['directory']}", "GB" if name != "vae" else "MB"):
            assert word in str(missing.value), (name, word)
    put_stand_ins(server.base / "models")
    small = changed(changed(graph, "UniViGUEmptyLatent", width=64, height=48, frames=5), "UniFlowSampler", steps=2)
    (video,) = client.run(small).files
    assert video.filename.endswith(".mp4")


def test_text_to_video_shows_what_the_prompt_says(shipped: Callable[[str], Any], client: Any, tmp_path: Path) -> None:
    graph = graph_of("text_to_video")
    world = world_in(video_in(client, shipped("text_to_video").result, tmp_path))
    assert world is not None
    assert world.caption == prompt_of(graph)
    other = changed(graph, "UniViGUTextEncode", text="a large yellow square moves up slowly on a gray background")
    if prompt_of(other) == prompt_of(graph):  # the first prompt node was the negative one
        pytest.fail("the positive prompt is expected to come first")
    assert seen_in(video_in(client, client.run(other), tmp_path)) == ("yellow", "gray")


def test_video_to_text_names_the_clips_colours(shipped: Callable[[str], Any], server: Server) -> None:
    result, events = shipped("video_to_text").result, shipped("video_to_text").events
    assert any(said_in(text) == seen_in(server.base / "input" / "uvg_sample.mp4") for text in texts(result))
    assert SAMPLE in texts(result)
    live = [event.data["text"] for event in events if event.type == "progress_text"]
    assert SAMPLE in live
    assert len(live) > 2  # the note of the encoder, and the text while it formed


def test_joint_text_and_video_agree(client: Any, tmp_path: Path) -> None:
    graph = without_its_steps(graph_of("joint"))
    result = client.run(changed(graph, "JointSampler", seed=1))
    caption = next(text for text in texts(result) if "background" in text)
    assert said_in(caption) == seen_in(video_in(client, result, tmp_path)), caption
    assert said_in(caption)[0] in prompt_of(graph)


def test_a_clip_begins_with_the_picture(client: Any, tmp_path: Path) -> None:
    """And its caption says what the picture shows."""
    result = client.run(graph_of("image_to_video"))
    first, picture = (
        read_clip(path, ClipSpec(1, 48, 48)).pixels.float()
        for path in (video_in(client, result, tmp_path), ROOT / "samples" / "uvg_sample.png")
    )
    assert float((first - picture).square().mean()) < 255**2 / 10**2.3  # 23 dB, through the VAE and a codec
    assert any(said_in(text) == ("yellow", "navy") for text in texts(result))


def test_caption_folder_writes_beside_the_clips(shipped: Callable[[str], Any], client: Any, server: Server) -> None:
    folder = server.base / "input" / "uvg_sample_clips"
    result = shipped("caption_folder").result
    clips = sorted(folder.glob("*.mp4"))
    assert len(clips) == 3
    for clip in clips:
        text = clip.with_suffix(".txt").read_text(encoding="utf-8")
        assert said_in(text) == seen_in(clip)
    assert any("3 captioned" in text for text in texts(result))
    # Core keeps the results of the last workflow only (its cache frees those of others first), so it runs here anew.
    for clip in clips:
        clip.with_suffix(".txt").unlink()
    graph = changed(graph_of("caption_folder"), "UniViGUCaptionFolder", seed=1)
    anew = texts(client.run(graph))
    assert any("3 captioned" in text for text in anew)
    assert sorted(texts(client.run(graph))) == sorted(anew)  # nothing has changed: done again, it would skip all three
    again = client.run(changed(graph, "UniViGUCaptionFolder", seed=2))
    assert any("3 skipped" in text for text in texts(again))


def test_a_story_is_one_film_without_jumps(shipped: Callable[[str], Any], client: Any, tmp_path: Path) -> None:
    """Nine frames, then four for every shot more; where shots meet, no more changes than inside of them."""
    result = shipped("story").result
    (saved,) = [record for record in result.files if record.filename.endswith(".mp4")]
    film = client.download(saved, tmp_path)
    assert (probe(film).frames, probe(film).fps) == (25, 4)
    pixels = read_clip(film, ClipSpec(25, 48, 48)).pixels.float()
    changes = (pixels[1:] - pixels[:-1]).abs().mean((1, 2, 3))
    assert float(changes[[8, 12, 16, 20]].mean()) < 1.5 * float(changes.mean())
    assert float(pixels[-1].mean((0, 1)).sub(pixels[0].mean((0, 1))).abs().max()) < 8


def test_a_story_whose_captions_the_model_writes(client: Any) -> None:
    graph = changed(graph_of("story"), "UniViGUStory", story="a red circle\na red circle", write_captions=True, steps=4)
    words = texts(client.run(graph))
    assert any(text.count("\n") == 1 and "circle" in text for text in words)


def test_find_clips_hands_on_the_clip_that_fits(shipped: Callable[[str], Any], client: Any, tmp_path: Path) -> None:
    result = shipped("find_clips").result
    assert "a large blue star moves down slowly on a beige background" in texts(result)
    (saved,) = [record for record in result.files if record.filename.endswith(".mp4")]
    found = read_clip(client.download(saved, tmp_path), ClipSpec(9, 48, 48)).pixels
    star = read_clip(ROOT / "samples" / "uvg_sample_clips" / "blue_star.mp4", ClipSpec(9, 48, 48)).pixels
    assert float((found.float() - star.float()).abs().mean()) < 3
    both = client.run(changed(graph_of("find_clips"), "UniViGUFindClips", query="a yellow ring moves right", top=2))
    names = next(text for text in texts(both) if "nats" in text).splitlines()
    assert len(names) == 2
    assert "yellow_ring.mp4" in names[0]


def test_find_clips_hands_on_a_shot_of_a_film(client: Any, server: Server, tmp_path: Path) -> None:
    folder = server.base / "input" / "films"
    folder.mkdir()
    shutil.copy(ROOT / "samples" / "uvg_film.mp4", folder)
    graph = changed(graph_of("find_clips"), "UniViGUFindClips", folder="films", query="a green seven", shots=True)
    try:
        result = client.run(graph)
    except api.ClientError as error:
        if "shots are found with PySceneDetect" in str(error):
            pytest.skip(str(error))
        raise
    assert any("uvg_film.mp4 00:00:04.250 --> 00:00:06.375: a large green seven" in text for text in texts(result))
    (saved,) = [record for record in result.files if record.filename.endswith(".mp4")]
    shot = client.download(saved, tmp_path)
    assert probe(shot).frames == 17
    film = read_clip(ROOT / "samples" / "uvg_film.mp4", ClipSpec(68, 48, 48)).pixels[34:51]
    change = (read_clip(shot, ClipSpec(17, 48, 48)).pixels.float() - film).abs().mean((1, 2, 3))
    assert float(change.max()) < 3


def test_each_shot_of_a_film_is_captioned_and_saved(shipped: Callable[[str], Any], client: Any, tmp_path: Path) -> None:
    try:
        result = shipped("caption_shots").result
    except api.ClientError as error:
        if "shots are found with PySceneDetect" in str(error):
            pytest.skip(str(error))
        raise
    lines = next(text for text in texts(result) if "-->" in text).splitlines()
    assert lines[0] == f"00:00:00.000 --> 00:00:02.125\t{SAMPLE}"
    assert [line[17:29] for line in lines] == ["00:00:02.125", "00:00:04.250", "00:00:06.375", "00:00:08.500"]
    saved = next(record for record in result.files if record.filename.endswith(".srt"))
    cues = client.download(saved, tmp_path).read_text(encoding="utf-8").strip().split("\n\n")
    assert [" ".join(cue.split("\n")[2:]) for cue in cues] == [line.split("\t")[1] for line in lines]
    (viewer,) = ids_of(graph_of("caption_shots"), "PreviewImage")
    thumbnails = [record for record in result.files if record.node == viewer]
    assert len(thumbnails) == 4
    film = read_clip(ROOT / "samples" / "uvg_film.mp4", ClipSpec(68, 48, 48)).pixels
    for n, record in enumerate(sorted(thumbnails, key=lambda one: one.filename)):
        with Image.open(client.download(record, tmp_path)) as picture:
            seen = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(48, 48, 3)
        assert float((seen.float() - film[17 * n + 8]).abs().mean()) < 2


def test_rank_captions_finds_the_right_one(shipped: Callable[[str], Any]) -> None:
    result = shipped("rank_captions").result
    assert SAMPLE in texts(result)
    assert any(record.filename.endswith(".png") for record in result.files)


def test_few_words_become_a_draft_and_its_changed_caption_a_clip(
    shipped: Callable[[str], Any], client: Any, tmp_path: Path
) -> None:
    result = shipped("few_words").result
    (sampler,), (viewer,) = (ids_of(graph_of("few_words"), kind) for kind in ("JointSampler", "PreviewAny"))
    drafted, _ = result.texts[sampler]  # and the scores
    assert result.texts[viewer] == [drafted.replace("slowly", "quickly")]
    assert "yellow star" in drafted
    saved = next(record for record in result.files if record.filename.endswith(".mp4"))
    clip = read_clip(client.download(saved, tmp_path), ClipSpec(17, 48, 64)).pixels
    assert clip.shape == (17, 48, 64, 3)
    assert float(clip.float().std()) > 10  # a picture, and no plain colour


def test_an_edit_shows_what_the_new_caption_says(shipped: Callable[[str], Any], client: Any, tmp_path: Path) -> None:
    result = shipped("edit_by_words").result
    blue = SAMPLE.replace("red", "blue")
    assert f"from: {SAMPLE}\nto: {blue}" in texts(result)
    edited, both = (client.download(file, tmp_path) for file in sorted(result.files, key=lambda f: f.filename)[:2])
    sides = read_clip(both, ClipSpec(9, 48, 98)).pixels
    worlds = [world_in(edited), *map(read_world, (sides[:, :, :48], sides[:, :, 50:]))]
    assert [world and world.caption for world in worlds] == [blue, SAMPLE, blue]


def test_the_best_of_a_batch_is_shown_and_all_are_scored(
    shipped: Callable[[str], Any], client: Any, tmp_path: Path
) -> None:
    result = shipped("best_of").result
    lines = next(text for text in texts(result) if "batch index" in text).splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert sorted(line[-1] for line in lines) == list("0123")
    assert len(read_clip(video_in(client, result, tmp_path), ClipSpec(9, 48, 48)).pixels) == 9  # one clip, not four


@pytest.mark.slow
def test_training_in_two_stages_changes_what_the_model_says(client: Any, server: Server) -> None:
    """A clip that is not among those of the folder, described in the folder's wording."""
    before, after = trained_in_two_stages(client, server, graph_of("train_two_stages"))
    assert before == SAMPLE
    wording = r"on (\w+) a (small|large) (\w+) (circle|square|triangle) moves (left|right|up|down)"
    found = re.fullmatch(wording, after)
    assert found is not None, after
    assert (found[3], found[1]) == seen_in(server.base / "input" / "uvg_sample.mp4")


@pytest.mark.slow  # a training; test_training.py has both stages through the same nodes, smaller
def test_training_in_two_stages_leaves_both_loras_and_their_losses(client: Any, server: Server) -> None:
    graph = graph_of("train_two_stages")
    for stage in ids_of(graph, "UniViGUTrain"):
        graph[stage]["inputs"]["steps"] = 4
    assert SAMPLE in trained_in_two_stages(client, server, graph)


def trained_in_two_stages(client: Any, server: Server, graph: dict[str, Any]) -> list[str]:
    """What the model says, before and after, once the files, the live texts and the plots of both stages are seen."""
    events: list[Any] = []
    folder = server.base / "output" / "loras"
    earlier = set(folder.glob("*"))  # the browser's test runs the same workflow on the same server
    try:
        result = client.run(graph, on_event=events.append, timeout=1200)
    except api.ClientError as error:
        if "training needs the package" in str(error):
            pytest.skip(str(error))
        raise
    live = [event.data["text"] for event in events if event.type == "progress_text"]
    for stage in ids_of(graph, "UniViGUTrain"):
        steps = graph[stage]["inputs"]["steps"]
        assert any(text.startswith(f"{steps}/{steps} loss ") for text in live)
        saved = set(folder.glob(f"{graph[stage]['inputs']['filename_prefix']}_{steps}_steps_*")) - earlier
        assert len(saved) == 1
    assert sum(record.filename.endswith(".png") for record in result.files) == 2  # losses
    return [text for text in texts(result) if "moves" in text]


def test_the_same_seed_gives_the_same_pixels(client: Any, server: Server, tmp_path: Path) -> None:
    """Another seed lies between, so that nothing comes from ComfyUI's cache. Pictures, not the video: core's encoder
    writes several files for the same pixels."""
    graph = without_its_steps(graph_of("joint"))
    (decoder,) = ids_of(graph, "VAEDecode")
    graph["pictures"] = {"class_type": "SaveImage", "inputs": {"images": [decoder, 0], "filename_prefix": "pixels"}}
    found = []
    for n, seed in enumerate((5, 6, 5)):
        result = client.run(changed(graph, "JointSampler", seed=seed, steps=4))
        pictures = []
        for record in (file for file in result.files if file.node == "pictures"):
            with Image.open(client.download(record, tmp_path / str(n))) as picture:
                pictures.append(picture.convert("RGB").tobytes())
        found.append((texts(result), pictures))
    assert len(found[0][1]) == 9
    assert found[0] == found[2]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_workflows_of_older_versions_still_run(client: Any, path: Path) -> None:
    result = client.run(json.loads(path.read_text(encoding="utf-8")))
    assert result.files or result.texts


def test_there_are_frozen_workflows() -> None:
    assert FROZEN
    assert {path.stem for path in FROZEN} <= set(NAMES)


WRONG: dict[str, tuple[str, Callable[[Graph], Graph], str]] = {
    "a checkpoint that is not there": (
        "text_to_video",
        lambda g: changed(g, "UniViGULoader", checkpoint="gone.safetensors"),
        "To get the released model: uni_vigu.pth (6.1 GB in bf16, 12.2 GB in fp32) from https://huggingface.co/",
    ),
    "an overlong prompt": (
        "text_to_video",
        lambda g: changed(g, "UniViGUTextEncode", text="circle " * 60),
        "this model reads 32",
    ),
    "a template that does not fit": (
        "video_to_text",
        lambda g: changed(g, "VideoToTextDenoise", template="circle " * 30 + "___"),
        "ask for a longer text stream",
    ),
    "frames below zero": ("video_to_text", lambda g: changed(g, "UniViGUEncodeVideo", frames=-1), "frames"),
    "frames off the grid": ("video_to_text", lambda g: changed(g, "UniViGUEncodeVideo", frames=8), "4n+1"),
    "no text to rank": ("rank_captions", lambda g: changed(g, "UniViGURankCaptions", texts=" "), "one text per line"),
    "words that are not in the caption": (
        "edit_by_words",
        lambda g: changed(g, "UniViGUEdit", change="green=blue"),
        f"'green' does not occur in the caption; expected words of it, whole. The caption is: {SAMPLE}",
    ),
    "a folder that is not there": (
        "caption_folder",
        lambda g: changed(g, "UniViGUCaptionFolder", folder="nowhere"),
        "the folder in the widget folder cannot be opened",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_and_the_next_prompt_runs(client: Any, case: str) -> None:
    name, spoil, words = WRONG[case]
    with pytest.raises(api.ClientError, match=r"\w") as caught:
        client.run(spoil(graph_of(name)))
    assert words in str(caught.value)
    assert SAMPLE in texts(client.run(graph_of("video_to_text")))


def test_a_long_joint_run_is_cancelled_at_once(client: Any) -> None:
    """Interrupted from a preview or a live text of its own: what was running stops, and the next prompt runs."""
    graph = changed(graph_of("joint"), "JointSampler", steps=1000, seed=11)
    steps: list[int] = []

    def on_event(event: Any) -> None:
        if event.type == "progress_text" and not steps:
            client.interrupt()
            steps.append(1)

    with pytest.raises(api.ClientError, match=r"(?i)interrupt"):
        client.run(graph, on_event=on_event)
    assert steps
    assert SAMPLE in texts(client.run(graph_of("video_to_text")))
