"""Core's samplers on latents of two streams, and our samplers inside ComfyUI against uvg_core alone."""

from __future__ import annotations

import pytest
from in_comfyui_host import Inside


def test_empty_latents_have_the_streams_of_the_checkpoint(inside: Inside) -> None:
    found = inside.call("streams", "empty_latents")
    assert found["discrete"] == [[1, 16, 2, 4, 6]]
    assert found["embedding"] == [[2, 16, 2, 4, 6], [2, 64, 5]]


def test_the_stock_sampler_integrates_both_streams(inside: Inside) -> None:
    found = inside.call("streams", "stock_sampler_is_our_loop")
    assert all(value <= 2e-5 for value in found.values()), found


def test_all_core_samplers_and_schedulers(inside: Inside) -> None:
    found = inside.call("streams", "every_sampler")
    assert found["problems"] == {}
    assert found["runs"] >= 2 * (40 + 9)


def test_what_other_packs_add_to_core_s_samplers_is_offered(inside: Inside) -> None:
    assert inside.call("streams", "added_later") == [["of another pack"], ["of another pack"]]


def test_a_mask_holds_a_stream_clean(inside: Inside) -> None:
    found = inside.call("streams", "masks")
    video, text = found["video"], found["text"]
    assert video["video"] <= 1e-5
    assert video["clocks"][0] == video["clocks"][2] == 0
    assert video["clocks"][3] > 900
    assert text["tokens"] == [[3, 7, 30, 1, 0]]
    assert text["video"] > 0.1
    assert text["clocks"][1] == text["clocks"][3] == 0


def test_held_parts_go_into_the_network_as_it_was_trained(inside: Inside) -> None:
    found = inside.call("streams", "held_parts")
    assert len(found) == 4
    for name, numbers in found.items():
        assert all(value <= 1e-4 for value in numbers.values()), (name, numbers)
    assert "alone" in found["clean discrete"]


def test_video_to_text_as_a_mask_is_video_to_text(inside: Inside) -> None:
    assert inside.call("streams", "video_to_text_is_our_loop")


def test_our_samplers_take_the_embedding_flow(inside: Inside) -> None:
    found = inside.call("streams", "our_samplers_take_the_embedding_flow")
    assert found == {"video": [1, 16, 2, 4, 6], "text": [1, 5], "steps": 4}


def test_through_comfyui_or_alone_the_same_words_and_videos(inside: Inside) -> None:
    found = inside.call("streams", "same_words_everywhere")
    assert found["words"]
    assert found["joint words"]
    assert found["scores"] <= 1e-3
    assert found["joint video"] <= 1e-4


def test_sampler_custom_advanced(inside: Inside) -> None:
    assert inside.call("streams", "advanced_sampler") <= 1e-5


def test_a_packed_latent_is_estimated_as_its_video(inside: Inside) -> None:
    found = inside.call("streams", "memory")
    assert found["packed"] == pytest.approx(found["plain"])


def test_joint_sampler_keeps_words_and_frames_of_two_streams(inside: Inside) -> None:
    found = inside.call("streams", "joint_keeps_words")
    [words] = found["words"]
    assert [len(words), words[0], words[2]] == [5, 3, 30]
    assert found["frames"][0] == 0.0 < found["frames"][1]
    assert not found["mask left"]
    assert "words of a text stream that is empty" in found["empty"]
    assert "set text_length to 0" in found["length"]
