"""Numbers of the released network at toy sizes (tests/golden: weights, inputs and outputs of the release's code)."""

from __future__ import annotations

import json

import pytest
import torch
from run_jobs import text_to_video
from safetensors import safe_open
from tiny_networks import GOLDEN

from uvg_core import UniViGU, load_model
from uvg_core.checkpoint import Overrides
from uvg_core.flow.schedule import video_sigmas
from uvg_core.flow.time import model_time_from_sigma

TOLERANCE = 2e-5


def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        keys = [key for key in file.keys() if not key.startswith("model.")]  # noqa: SIM118
        return {key: file.get_tensor(key) for key in keys}, file.metadata()


@pytest.mark.parametrize("name", ["forward_uniform", "forward_masked_source", "forward_padded_text"])
def test_forward(name: str) -> None:
    tensors, _ = read(name)
    model = load_model(GOLDEN / f"{name}.safetensors")
    given = {key.removeprefix("input."): value for key, value in tensors.items() if key.startswith("input.")}
    velocity, logits = model(**given)
    torch.testing.assert_close(velocity, tensors["output.velocity"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits, tensors["output.logits"], atol=TOLERANCE, rtol=0)


def test_sampling_run() -> None:
    tensors, metadata = read("sample_t2v_cfg")
    settings = json.loads(metadata["sampling"])
    sigmas = video_sigmas(settings["steps"], settings["shift"])
    assert torch.equal(sigmas[:-1], tensors["schedule.sigmas"])
    torch.testing.assert_close(model_time_from_sigma(sigmas[:-1]), tensors["schedule.timesteps"])
    latent = text_to_video(
        load_model(GOLDEN / "sample_t2v_cfg.safetensors"),
        noise=tensors["input.noise"],
        text=tensors["input.text"],
        text_mask=tensors["input.text_mask"],
        context=tensors["input.context"],
        null_context=tensors["input.null_context"],
        steps=settings["steps"],
        shift=settings["shift"],
        guidance_scale=settings["cfg_scale"],
    )
    torch.testing.assert_close(latent, tensors["output.latent"], atol=TOLERANCE, rtol=0)


def test_rounded_clocks_are_the_releases() -> None:
    """Both of them: bfloat16 has eight bits, so that 993.4 is told as 992; 0 and 250 are what they are."""
    tensors, _ = read("forward_uniform")
    given = {key.removeprefix("input."): value for key, value in tensors.items() if key.startswith("input.")}
    path, rows = GOLDEN / "forward_uniform.safetensors", given["video"].shape[0]
    plain, rounds = load_model(path), load_model(path, overrides=Overrides(time_rounding="bfloat16"))
    assert (plain.config.time_rounding, rounds.config.time_rounding) == ("none", "bfloat16")

    def told(model: UniViGU, video: float, text: float) -> tuple[torch.Tensor, torch.Tensor]:
        clocks = {"time_video": torch.full((rows,), video), "time_text": torch.full((rows,), text)}
        velocity, logits = model(**{**given, **clocks})
        return velocity, logits

    for (video, text), (video_told, text_told) in (
        ((993.4, 250.0), (992.0, 250.0)),
        ((0.0, 513.0), (0.0, 512.0)),
        ((250.0, 0.0), (250.0, 0.0)),
    ):
        for ours, known in zip(told(rounds, video, text), told(plain, video_told, text_told), strict=True):
            assert torch.equal(ours, known)
    assert not torch.equal(told(plain, 993.4, 0.0)[0], told(rounds, 993.4, 0.0)[0])
    assert not torch.equal(told(plain, 0.0, 513.0)[1], told(rounds, 0.0, 513.0)[1])
