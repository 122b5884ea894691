"""What the benchmarks measure inside ComfyUI: a process there calls these functions (see ``measuring.comfyui``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import torch
from check_made import bridge, core, run
from comfy.ldm.modules.attention import attention_pytorch
from worker import pack_module

sys.path.append(str(Path(__file__).parent))

from measuring import GB, in_turn, kernels

VOCABULARY = 32_000  # the released model's 256,300 rows would take most of the memory of a small pass


def passes(blocks: int, width: dict[str, int], video: list[int], turns: int, device: str, dtype: str) -> dict[str, Any]:
    """Seconds of every turn and, on CUDA, kernels of a pass, by name: ours and core's Wan with the same weights, both
    with torch's attention. There are as many text tokens as a latent frame of ``video`` has."""

    def attention(_: Any, *args: Any, **kwargs: Any) -> Any:
        return attention_pytorch(*args, **kwargs)

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).to(place, kind)

    options = {"optimized_attention_override": attention}
    kind, place = getattr(torch, dtype), torch.device(device)
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {"device": place, "dtype": kind, "operations": comfy.ops.disable_weight_init}
    config = core.ModelConfig(**width, num_layers=blocks, vocab_size=VOCABULARY)
    ours = bridge.HostedNetwork(config, **made).eval()
    for name, weight in ours.named_parameters():
        weight.copy_(random(*weight.shape) * 0.02 + float("norm" in name and name.endswith("weight")))
    theirs = comfy.ldm.wan.model.WanModel(
        model_type="t2v", in_dim=16, out_dim=16, num_layers=blocks, freq_dim=256, **width, **made
    ).eval()
    weights = dict(ours.named_parameters())
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})

    frames, height, side = video
    small, large = random(1, 16, frames, height, side), random(1, 16, frames + 1, height, side)
    clock = torch.full((1,), 500.0, device=place)
    context = random(1, 512, width["text_dim"])
    tokens = torch.randint(VOCABULARY, (1, height * side // 4), generator=generator).to(place)

    def joint() -> Any:
        stream = bridge.TextInput(tokens, clock, None, core.model.PassOptions(), (False,))
        return ours(small, clock, context, dict(options), text_stream=stream)

    jobs = {
        "core": lambda: theirs(small, clock, context, transformer_options=dict(options)),
        "core, equal tokens": lambda: theirs(large, clock, context, transformer_options=dict(options)),
        "ours, no text": lambda: ours(small, clock, context, dict(options)),
        "ours, video and text": joint,
    }
    for job in jobs.values():
        job()
    same = (jobs["ours, no text"]() - jobs["core"]()).abs().max()
    launches = {name: kernels(job) for name, job in jobs.items()} if place.type == "cuda" else {}
    return {"seconds": in_turn(jobs, turns, place), "difference from core": float(same), "launches": launches}


def peak(model: str, gb: float, job: str, size: list[int], text: int, context: int) -> float:
    """Bytes at the peak of a job of two steps with ComfyUI's own offload, on a card of which torch may take ``gb``.

    On a CPU, for a rehearsal, they are the network's estimate. What is measured is the offload of ComfyUI's
    ModelPatcher (as with ``--disable-dynamic-vram``): dynamic VRAM keeps weights where torch neither counts nor limits
    them.
    """
    device = comfy.model_management.get_torch_device()
    on_card = device.type == "cuda"
    if on_card:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gb * GB / total), device)
    network = bridge.load_network(model, "default", None)
    config = bridge.network_of(network).config
    latent = torch.zeros(1, config.in_dim, *size)
    sampling = pack_module("uvg_core.sampling")
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    if job == "text_to_video":
        words = torch.randint(config.vocab_size, (1, text))
        prompt = [[torch.randn(1, context, config.text_dim), {bridge.TEXT_TOKENS: words}]]
        inputs = {"positive": prompt, "negative": prompt, "latent": {"samples": latent}, "seed": 0, "steps": 2}
        inputs |= {"guidance": 5.0, "shift": 3.0, "sampler": "euler", "scheduler": "uniform", "denoise": 1.0}
        for _ in ("loading included", "loaded"):
            run("UniFlowSampler", model=network, **inputs)
    else:
        settings = sampling.Sampling(text_length=text, steps=2, temperature=0.0, video_cache="static")
        clip = torch.randn(latent.shape)
        bridge.run_on_clip(network, lambda *given: sampling.video_to_text(*given, settings), clip, settings)
    if on_card:
        return float(torch.cuda.max_memory_allocated(device))
    return float(network.model_size() + network.model.memory_required(list(latent.shape)))
