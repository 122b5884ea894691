"""Numbers of the released network at toy sizes (tests/golden: weights, inputs and outputs of the release's code)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from tiny_networks import GOLDEN

from uvg_core import load_model, text_to_video
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
