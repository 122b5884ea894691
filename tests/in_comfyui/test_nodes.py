"""The nodes one by one: what they give, what they say when they are used wrongly, and how they stop."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from in_comfyui_host import Inside

ROOT = Path(__file__).parents[2]
SAMPLE = "a large red circle moves right quickly on a navy background"


def test_clips_are_fitted_to_the_model_and_it_says_how(inside: Inside) -> None:
    found = inside.call("nodes", "clips")
    shapes = {name: shape[2:] for name, shape in found["shapes"].items()}
    whole = [3, 6, 6]
    assert shapes == {"whole": whole, "more": [5, 6, 6], "slow": [2, 6, 6], "part": [1, 6, 6], "images": whole}
    note, more, slow, part, images = found["notes"]
    assert note == "uvg_sample.mp4: 9 of 17 frames, evenly over 2.1 s (8 fps); 288x288 resized to 48x48"
    assert more == note.replace("9 of 17", "17 of 17")
    assert "5 of 17 frames, retimed from 8 to 2 fps" in slow
    assert "the part from 0.5 s of 2.1 s" in part
    assert images.startswith("images: 9 of 17 frames")
    alike, unlike = found["cropped"]
    assert (alike, unlike > 0.1) == (0.0, True)
    assert found["cropped clip"][0].endswith("144x288 resized to 48x96, cropped to 48x48")
    assert found["cropped clip"][1] == [144, 288, 17]
    fits = found["fits"]
    assert fits["left to it"].endswith("48x96, cropped to 48x48")
    assert fits["chosen"].endswith("48x96, cropped to 48x48")
    assert fits["top"].endswith("48x96, cropped to 48x48 (top)")
    assert fits["pad"].endswith("padded to 48x48")
    assert "background is 'mauve'; expected black" in fits["no colour"]
    assert found["rates"] == [[pytest.approx(4.2, abs=0.05), 6.0], [2.0, 6.0], [4.0, 6.0], [4.0, 6.0], [4.0, 3.0]]
    assert found["memory differs"] == found["images differ"] < 0.2  # ComfyUI's colour conversion is not quite ours


def test_what_is_left_to_the_checkpoint_is_what_it_carries(inside: Inside) -> None:
    found = inside.call("nodes", "auto")
    assert found["latent"] == [[1, 16, 3, 6, 6], 4.0, 6.0, [1, 16, 3, 6, 12]]
    assert found["clips"] == 0.0
    assert found["joint"] == [0.0, True]
    assert found["read"] == [0.0, True]
    assert "retimed from 8 to 4 fps" in found["timed"]
    assert found["by model"] == 0.0
    assert found["known"] == [[1, 16, 3, 6, 6]]
    assert "connect MODEL" in found["unknown"]


def test_pictures_at_the_ends_of_a_clip_stay(inside: Inside) -> None:
    found = inside.call("nodes", "pictures_at_the_ends")
    assert found["no pictures"] == ["samples"]
    assert (found["mask"], found["both"]) == ([0, 1, 1], [0, 1, 0])
    assert (found["several"], found["a tail"]) == ([0, 0, 1], [1, 1, 1, 0, 0])
    assert found["as encoded"] <= 1e-4
    assert all(value <= 1e-5 for value in found["kept"].values()), found["kept"]
    assert all(found["formed"].values())
    assert found["batch"] == [2, 16, 3, 6, 6]
    assert found["stream"] == [5, 0.0]
    assert "connect VAE of Load Uni-ViGU to the input vae" in found["no vae"]
    assert "ask for more frames" in found["all"]


def test_captions(inside: Inside) -> None:
    found = inside.call("nodes", "captions")
    assert found["free"] == found["again"]
    assert found["free"][0] == [SAMPLE]
    assert found["free"][1] == [1, 3, 5, 7, 10, 12, 14, 16]
    assert found["batch"][0][0] == SAMPLE
    assert len(found["batch"][0]) == 2
    assert "red" in found["batch"][0][1]
    assert found["as recommended"] == found["likeliest"]
    assert found["as recommended"] != found["drawn at random"]
    assert found["template"][0] == found["hint"][0] == found["stable"][0] == [SAMPLE]
    assert found["late hint"] == found["hint"]  # there is one time for the video, and a range would leave it out
    assert found["stable"][1][-1] < 16
    assert found["no record"][1] == []


def test_a_clip_is_looked_at_once_where_that_changes_nothing(inside: Inside) -> None:
    found = inside.call("nodes", "looks_at_the_clip")
    windows, windows_off = found.pop("windows"), found.pop("windows, off")
    ranking, log, several = found.pop("ranking"), found.pop("log")[0], found.pop("several prompts")
    # Where the clip sees the text, what it says changes; how often is what was asked for.
    joint = {name: found.pop(name)[1] for name in list(found) if name.startswith("joint")}
    assert {words for words, _ in found.values()} == {SAMPLE}
    looks = {name: count for name, (_, count) in found.items()}
    once = ("auto", "static", "refresh=2", "template", "two clips")
    assert looks == {"off": 8, **dict.fromkeys(once, 1), "patched": 8}
    assert windows == windows_off
    assert ranking[1] == 1
    assert several[1] >= 8
    assert "every step looks at the clip" in log
    assert joint == {"joint, off": 8, "joint, auto": 8, "joint, static": 1, "joint, refresh=2": 4}


def test_the_text_shows_while_it_forms(inside: Inside) -> None:
    shown = inside.call("nodes", "live_text")
    assert len(shown) > 2
    assert shown[0] != SAMPLE
    assert shown[-1] == SAMPLE
    assert all(text.isprintable() for text in shown)


def test_cancel_acts_within_one_step_everywhere(inside: Inside) -> None:
    found = inside.call("nodes", "interrupted")
    assert found.pop("after") == [SAMPLE]
    assert found.pop("written") == []
    assert len(found) == 7
    for name, (outcome, calls) in found.items():
        assert outcome == "interrupted", name
        assert calls <= 4, (name, calls)


def test_one_of_a_batch_again(inside: Inside) -> None:
    found = inside.call("nodes", "one_of_a_batch")
    assert found["words"]
    assert found["video"] <= 1e-3


def test_the_best_of_several_draws(inside: Inside) -> None:
    found = inside.call("nodes", "best_of")
    lines = found["said"].splitlines()
    for row, (is_draw, (best, order, scores)) in enumerate(zip(found["drawn"], found["ranked"], strict=True)):
        assert is_draw == [draw == order[0] for draw in range(3)]  # to the bit, and what Rank Clips finds
        assert best == order[:1]
        assert [int(line.rpartition(" ")[2]) for line in scores.splitlines()] == order
        assert lines[row].startswith(f"clip {row + 1}: seed {7 + order[0]} fits best; nats by seed: 7: -")
    assert all(found["in order"])
    *alone, several = found["joint, words"]
    for row, is_draw in enumerate(found["joint"]):
        assert is_draw.count(True) == 1
        assert several[row] == alone[is_draw.index(True)][row]
    assert found["joint, said"][:2] == several
    assert "clip 2: seed " in found["joint, said"][2]
    assert found["cancelled"][0]
    assert "(stopped after 1 of 3 draws)" in found["cancelled"][1]
    assert "best_of is 2, and the positive prompt has no text stream" in found["no words"]
    assert "there is no prompt to judge the clips by" in found["no prompt"]


def test_ranking(inside: Inside) -> None:
    best, scores, shape = inside.call("nodes", "rank")
    assert best == SAMPLE
    assert [line.split("  ")[-1] for line in scores.splitlines()] == [
        SAMPLE,
        "a small blue square moves up slowly on a gray background",
    ]
    assert shape[-1] == 3


def test_a_folder_gets_its_captions(inside: Inside, tmp_path: Path) -> None:
    for clip in (ROOT / "samples" / "uvg_sample_clips").glob("*.mp4"):
        shutil.copy(clip, tmp_path)
    (tmp_path / "sub").mkdir()
    shutil.copy(ROOT / "samples" / "uvg_sample.mp4", tmp_path / "sub")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    found = inside.call("nodes", "folder", path=str(tmp_path))
    captions, report, names, (count, height, width, channels) = found["first"]
    assert len(captions) == 4
    assert report.startswith("5 clips: 4 captioned, 0 skipped (already captioned), 1 failed")
    assert "broken.mp4" in report
    assert found["second"][0] == captions
    assert "0 captioned, 4 skipped" in found["second"][1]
    assert found["noticed"]
    assert "sub/uvg_sample.mp4" in names
    assert captions[names.index("sub/uvg_sample.mp4")] == SAMPLE
    assert (count, channels) == (1, 3)
    assert height > width / 2
    assert max(height, width) < 2000
    files = found["files"]
    assert files["uvg_sample.txt"] == SAMPLE  # subfolders were off the third time
    for colour in ("blue", "green", "yellow"):
        text = next(text for name, text in files.items() if name.startswith(colour))
        assert text.startswith("mystyle, a large ")
        assert colour in text
    every, some, hinted = (dict(zip(names, captions, strict=True)) for captions, _, names, _ in found["drawn"])
    assert every == {**some, "sub/uvg_sample.mp4": every["sub/uvg_sample.mp4"]}  # each clip's seed is its own
    assert hinted != some


def test_saved_files_come_back(inside: Inside) -> None:
    found = inside.call("nodes", "saving")
    for dtype, limit in (("as loaded", 0.0), ("fp32", 0.0), ("fp16", 1e-3), ("bf16", 1e-2), ("fp8", 5e-2)):
        gap, length, folder = found[dtype]
        assert gap <= limit, (dtype, gap)
        assert length == 7
        assert folder == "diffusion_models"
        assert found[f"{dtype} in the list"]
    report, gap = found["lora"]
    assert "matched 1 of 1 layers: 0 of the video half, 1 of the text half" in report
    assert gap <= 1e-6
    assert found["whole"] == [0.0, 0.0, 0.0, "checkpoints"]


def test_scales_of_fp8_are_neither_lost_nor_applied_twice(inside: Inside) -> None:
    found = inside.call("nodes", "scaled_files")
    for kind, limit in (("saved", 0.05), ("learnt", 0.08), ("read", 1e-6)):
        for way, errors in found[kind].items():
            assert max(errors) <= limit, (kind, way, errors)


def test_a_link_that_leads_nowhere_does_not_keep_the_pack_from_loading(inside: Inside) -> None:
    assert inside.call("nodes", "dangling_links")


def test_a_file_whose_name_comes_from_another_node_is_noticed_too(inside: Inside) -> None:
    before, opened, same, replaced, again = inside.call("nodes", "connected_files")
    assert before == opened == same != replaced == again


def test_a_file_that_was_replaced_or_deleted_is_noticed(inside: Inside) -> None:
    found = inside.call("nodes", "changed_files")
    assert len(found) == 6
    for node, (gone, dangling, there, again, other) in found.items():
        assert gone == dangling, node
        assert there == again, node
        assert len({gone, there, other}) == 3, node


def test_text_states(inside: Inside) -> None:
    found = inside.call("nodes", "text_states")
    if found["umT5"] == -1.0:
        pytest.skip("transformers is not installed beside ComfyUI: nothing to compare with")
    assert found["umT5"] <= 1e-5
    assert found["release"] <= 1e-5
    assert found["umT5 padding"] == 0.0
    assert found["release padding"] > 0.1


def test_a_release_with_the_files_that_wan_users_have(inside: Inside) -> None:
    found = inside.call("nodes", "separate_files")
    assert found.pop("all-in-one, its own encoder") == 0.0
    limits = {"fp16": 1e-5, "fp32": 1e-5, "fp8": 0.1, "scaled fp8": 0.05}
    assert found.keys() == limits.keys()
    for name, limit in limits.items():
        assert found[name] <= limit, (name, found[name])


HUB = "from https://huggingface.co/"
# Each mistake, and words that its message must hold: what was found, what to change.
MESSAGES = {
    "checkpoint is a LoRA or VAE": ("not_a_vae.safetensors", "Choose the diffusion model's file"),
    "checkpoint is broken": ("broken.safetensors", "Download the file again"),
    "checkpoint carries no text encoder": ("another.safetensors", "text_encoder", "umt5_xxl", "6.7 GB", HUB),
    "checkpoint is gone": ("gone.safetensors", "models/uni_vigu", "6.1 GB", HUB),
    "text encoder is gone": ("gone.safetensors", "umt5_xxl", "6.7 GB", HUB, "models/text_encoders"),
    "VAE is gone": ("gone.safetensors", "wan_2.1_vae", "254 MB", HUB, "models/vae"),
    "text encoder of another width": ("narrow.safetensors", "128", "20"),
    "text encoder without tokenizer": ("no_tokenizer.safetensors", "spiece_model"),
    "not a VAE": ("not_a_vae.safetensors", "wan_2.1_vae"),
    "overlong prompt": ("61 tokens", "32", "shorten"),
    "overlong stream": ("61 tokens", "shorten"),
    "no CLIP": ("no CLIP", "umT5", "Load Uni-ViGU"),
    "too few steps for the scheduler": ("kl_optimal", "1 step"),
    "prompt of another width": ("width 128", "width 20", "Load Uni-ViGU"),
    "latent of another model": ("[1, 4, 8, 8]", "Empty Uni-ViGU Latent"),
    "latent of another model, caption": ("[1, 4, 8, 8]", "Encode Video"),
    "latent of another model, stock sampler": ("[1, 48, 3, 6, 6]", "another model"),
    "two streams, discrete flow": ("text stream", "Joint Sampler"),
    "template without blanks": ("no blank", "___"),
    "template does not fit": ("60 tokens", "24", "shorten"),
    "template for two clips": ("2 clips",),
    "no text to rank": ("one text per line",),
    "zero frames": ("[0, 48, 48, 3]",),
    "off the grid": ("8 frames", "9 frames"),
    "images have no rate": ("set it to 0",),
    "a folder without clips": ("no videos", "Check the folder"),
    "nothing could be captioned": ("1 failed", "clip.mp4"),
    "no folder": ("write the path",),
    "beyond the clips": ("no frames in the part from 100 s",),
    "endless temperature": ("temperature (-1 = auto) is -inf; expected a number",),
    "endless strength": ("strength_video is inf; expected a number",),
    "too long": ("length (0 = auto) is 10000; expected a whole number from 1 to 4096",),
    "nothing to split": ("Empty Uni-ViGU Latent",),
    "nothing was recorded": ("set record",),
}


def test_wrong_use_is_answered_with_what_to_change(inside: Inside) -> None:
    found = inside.call("nodes", "wrong_use")
    assert found.keys() == MESSAGES.keys()
    for name, words in MESSAGES.items():
        assert found[name].startswith("UniViGUError: "), (name, found[name])
        for word in words:
            assert word in found[name], (name, found[name])


def test_previews_have_the_colours_of_the_clip(inside: Inside) -> None:
    """The embedded model's VAE is not Wan's, whose colours core knows."""
    (red, green, blue), corner = inside.call("nodes", "preview_colours")
    assert red > 150 > 80 > max(green, blue)
    assert corner[2] > corner[0] + 40  # navy


def test_values_that_are_no_numbers_are_told(inside: Inside) -> None:
    """Black frames, with most packs."""
    video, joint = inside.call("nodes", "not_a_number")
    assert "weight_dtype" in video
    assert "not numbers after step 1 of 2" in joint


def test_a_missing_package_takes_one_feature(inside: Inside) -> None:
    found = inside.call("nodes", "without_a_package")
    assert len(found["left"]) == 21
    assert not {"UniViGUEncodeVideo", "UniViGUCaptionFolder"} & set(found["left"])
    assert len(found["said"]) == 1
    assert "UniViGUEncodeVideo, UniViGUCaptionFolder" in found["said"][0]
    assert "'av'" in found["said"][0]


def test_errors_of_all_kinds_can_be_printed_and_name_no_folder(inside: Inside) -> None:
    half = "caf\udce9"
    assert inside.call("nodes", "errors_for_clients") == {
        "plain": "ValueError: input/caf\\udce9\\x1b[31m",
        "a file": "FileNotFoundError: [Errno 2] No such file: 'input/caf\\\\udce9'",
        "names like roots": f"ValueError: input{Path.home()}{tempfile.gettempdir()}/x, ~/x",
        "chained": "RuntimeError: at input/clip.mp4",
        "odd": "UniViGUError: Odd: input/caf\\udce9",
        "odd below": "KeyError: 'fine'",
        "unicode": f"UnicodeEncodeError: {UnicodeEncodeError('utf-8', half, 3, 4, 'surrogates not allowed')}",
        "memory": "OutOfMemoryError: input is full",
        "cancelled": "InterruptProcessingException: ",
    }


def test_many_runs_leave_nothing_behind(inside: Inside) -> None:
    found = inside.call("nodes", "growth")
    assert found["after"] == found["before"]


def test_ids_and_the_order_of_inputs_are_those_of_shared_workflows(inside: Inside) -> None:
    """Saved workflows hold widget values by position: what was published once only grows at the end."""
    published = json.loads((Path(__file__).parent / "frozen" / "nodes.json").read_text(encoding="utf-8"))
    found = inside.call("nodes", "schemas")
    for name, schema in published.items():
        assert found[name]["inputs"][: len(schema["inputs"])] == schema["inputs"], name
        assert found[name]["outputs"][: len(schema["outputs"])] == schema["outputs"], name


def test_check_finds_the_latent_space_and_writes_it(inside: Inside) -> None:
    found = inside.call("nodes", "checked")
    assert "latent space   normalised" in found["report"]
    assert "text states    umT5" in found["report"]
    assert "all finite" in found["report"]
    assert found["trained in"] == 0.0
    assert found["previewed in"]
    assert found["judged"] == 0.0  # loaded as raw, it now runs as normalised
    assert found["wrong"] > 0.1
    assert found["file"][:2] == ["normalised", "umT5"]
    assert "latent space normalised" in found["file"][2]
    assert found["unchecked"] == "raw"
    assert "set text_states of Load Uni-ViGU to umT5" in found["release"]


def test_a_video_is_saved_with_its_caption(inside: Inside) -> None:
    found = inside.call("nodes", "captioned")
    words = "a large red circle"
    tags = {"title": words, "comment": words, "prompt": '{"1": {"class_type": "X"}}', "workflow": '{"id": "w"}'}
    whole, again, part, frames = (found[name] for name in ("whole", "again", "part", "frames"))
    assert found["unchanged"] == [True] * 4
    assert found["passed on"]
    assert [whole["file"], again["file"]] == [f"output/captioned/clip_0000{n}_.mp4" for n in (1, 2)]
    assert whole["ui"]["images"] == [{"filename": "clip_00001_.mp4", "subfolder": "captioned", "type": "output"}]
    assert found["memory"]["ui"]["images"][0]["subfolder"] == ""
    assert [whole["texts"], again["texts"], frames["texts"], found["memory"]["texts"]] == [[words], [], [words], []]
    assert [whole["end"], part["end"], frames["end"]] == pytest.approx([2.125, 0.5, 2.125], abs=2e-3)
    assert found["frames in the part"] == 4
    assert whole["tags"] == part["tags"] == frames["tags"] == tags
    assert again["tags"] == {**tags, "title": None, "comment": None}
    assert found["private"]["tags"] == {**tags, "prompt": None, "workflow": None}
    assert [whole["beside"], again["beside"]] == [[".mp4", ".srt", ".txt"], [".mp4"]]
    assert found["memory"]["beside"] == [".mp4"]  # an empty caption is not written
    assert found["srt"] == f"1\n00:00:00,000 --> 00:00:02,125\n{words}\n"
    assert all("filename_prefix is" in refusal for refusal in found["refused"])


def test_joint_sampler_keeps_what_a_mask_says(inside: Inside) -> None:
    found = inside.call("nodes", "joint_keeps")
    assert found["size only"] == found["white"] == [0.0]
    first, two = found["first frame"], found["two of the latent"]
    assert first[0] == two[0] == two[1] == 0.0
    assert min(first[1], first[2], two[2]) > 0.1
    exact, changed = found["corner"]
    assert (exact, changed > 0) == (0.0, True)
    assert "Video-to-Text Denoise" in found["whole"]
    assert "found a mask of 5 frames" in found["odd"]
    assert "the mask keeps parts of a latent that is empty" in found["empty"]
    assert "found a latent with a text stream (nested)" in found["nested"]


def test_a_part_of_a_video_is_read_as_core_shows_it(inside: Inside) -> None:
    found = inside.call("nodes", "sliced")
    assert found["read"] == found["known"] == found["shown"]
    assert found["shown"][-8:] == [4, 4, 4, 1, 3, 4, 32, 4]
    assert all(found["alike"])
    assert [note.split(", ")[0].split(": ")[1] for note in found["notes"]] == ["the first of 4 frames", "5 of 5 frames"]
    assert found["latents"] == [1, 2]  # 4n+1 frames
    assert ": a single frame, repeated 100 times" in found["end"]


def test_a_film_is_captioned_part_by_part(inside: Inside) -> None:
    found = inside.call("nodes", "filmed")
    captions = [
        SAMPLE,
        "a large blue star moves down slowly on a beige background",
        "a large green seven moves up quickly on a black background",
        "a large yellow ring moves right slowly on a gray background",
    ]
    assert found["whole"] == {
        "captions": captions,
        "times": [[2.125 * n, 2.125 * (n + 1)] for n in range(4)],
        "same": True,
        "thumbnails": [4, 48, 48, 3],
    }
    assert found["part"]["captions"] == captions[1:3]
    assert found["part"]["times"] == [[0, 2.125], [2.125, 4.25]]
    assert found["memory"]["times"] == [[0, 4.25], [4.25, 8.5]]
    assert [line.split(",")[2] for line in found["stopped"]] == ["caption", *captions[:2]]
    assert "pip install scenedetect-headless" in found["no detector"]
    assert "filename_prefix is '../film'" in found["outside"]


def test_as_loaded_saves_no_more_than_was_loaded(inside: Inside) -> None:
    found = inside.call("nodes", "sizes_saved")
    assert all(found["same"].values()), found["same"]
    assert found["apart"] == dict.fromkeys(found["apart"], 0.0)
    assert max(found["lora"].values()) < 500  # bytes: a scale and its mention
    assert max(found["lora apart"].values()) < 0.13
    assert found["loaded in fp8"] < 0.7
    assert found["loaded in fp32"] == ["float32"]
    assert found["whole"]


def test_samples_are_offered_once_and_as_few_as_are_needed(inside: Inside, tmp_path: Path) -> None:
    found = inside.call("nodes", "samples_offered", path=str(tmp_path))
    clips = [
        "uvg_film.mp4",
        "uvg_sample.mp4",
        "uvg_sample.png",
        *(f"uvg_sample_clips/{name}.mp4" for name in ("blue_star", "green_seven", "yellow_ring")),
    ]
    assert found["first"] == clips[:-1]
    assert found["own"]
    assert found["again"] == [*clips[:2], *clips[3:-1]]  # what was deleted stays deleted
    assert found["upgraded"] == [*clips[:2], *clips[3:]]
    assert found["other folder"] == found["later"] == found["spoiled"] == clips
    assert found["no notes"] == []
    assert found["training"] == [24, 24, 24, 9]  # read where they lie
    assert found["state"]
    assert "the folder in the widget folder cannot be opened" in found["written into"]


def test_a_clip_is_edited_by_its_words(inside: Inside) -> None:
    found = inside.call("nodes", "edited")
    blue = SAMPLE.replace("red", "blue")
    assert found["words"] == [SAMPLE, blue]
    assert found["said"] == [f"from: {SAMPLE}\nto: a blue star"]
    shape, before, after = found["both"]
    assert shape == [9, 48, 98, 3]
    assert before[0] > before[2] + 80
    assert after[2] > after[0] + 80
    assert found["again"] == 0.0
    assert found["other seed"] > 0.1
    weak, strong, none = found["strength"]
    assert none == 0.0 < weak < strong
    outside, inside_it = found["mask"]
    assert outside == 0.0 < inside_it
    assert found["mask of the latent"] == 0.0
    assert found["negative"] == 0.0
    assert found["long"] == [1, 16, 5, 6, 6]
    assert found["draws"] > 0.01
    changed, like_ours = found["wan"]
    assert changed > 0.1
    assert like_ours > 0.01  # our network also reads the words
    assert found["no picture"] == "ExecutionBlocker"
    for mistake, words in {
        "no words": f"nothing is to change; write old=new into change.*The caption is: {SAMPLE}",
        "other words": f"'green' does not occur in the caption.*The caption is: {SAMPLE}",
        "no change": "change is 'red'; expected old words, = and new words",
        "same words": "new_caption is the caption that the clip already has",
        "both ways": "change and new_caption are both filled in",
        "two clips": "found 2 clips",
        "empty": "the latent is empty; connect the clip to edit",
        "wide mask": "the mask is 96x48, of another shape than the clip, which is 48x48",
        "black mask": "black everywhere",
        "frames of a mask": "found a mask of 5 frames.*expected 1 frame, 9 as the clip has",
        "latent of another model": r"found a latent of shape \[1, 4, 8, 8\]",
        "plain Wan writes nothing": "caption is empty, and plain Wan writes no captions",
        "no such strength": "strength is 1.5; expected a number from 0 to 1",
        "long words": "tokens and this model reads 32",
    }.items():
        assert re.search(f"^UniViGUError: .*{words}", found[mistake]), (mistake, found[mistake])
