"""What a card is asked for, each with its limit: agreement with the CPU, counts, times, ComfyUI, the tests."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_rig import SMALL, NotRun, Rig
from measuring import GB, GIB, ROOT, comfyui, in_turn, ratio_of
from networks import caption_passes, random_network, write_random
from torch import Tensor

from uvg_core.checkpoint.quant import dequantise, is_quantised_in_fp8, quantise
from uvg_core.flow.discrete import draw_clean_tokens
from uvg_core.model import VideoCache
from uvg_core.model.memory import pass_bytes, video_tokens
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Sampling

SAMPLE = ROOT / "samples" / "uvg_sample.mp4"


@dataclass(frozen=True)
class Claim:
    """``holds``: ``at most`` or ``at least`` the ``limit``, in ``unit``. ``seconds``: about as long on a small card.
    ``counted``: tried on a fake card too. ``sized``: the limit is one for a card and the released size."""

    name: str
    holds: str
    limit: float
    unit: str
    measure: Callable[[Rig], float]
    seconds: float = 20
    counted: bool = False
    sized: bool = False

    def accepts(self, value: float) -> bool:
        return value <= self.limit if self.holds == "at most" else value >= self.limit


# Agreement with the CPU


def relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.float().cpu(), wanted.float().cpu()
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def agreement(width: str, kind: str, rig: Rig) -> float:
    """How far a pass in ``kind`` on the device is from one in float32 on the CPU: the larger of velocity and logits."""
    config = SMALL if width == "small" else rig.scale.compared
    model = random_network(config, torch.device("cpu")).float()
    g = torch.Generator().manual_seed(0)
    given = {
        "video": torch.randn(1, config.in_dim, 3, 16, 16, generator=g),
        "text": torch.randint(config.vocab_size, (1, 32), generator=g),
        "time_video": torch.tensor([700.0]),
        "time_text": torch.tensor([300.0]),
        "context": torch.randn(1, 64, config.text_dim, generator=g),
    }
    wanted = model(**given)
    if kind == "fp8":
        for name, weight in model.named_parameters():
            if is_quantised_in_fp8(name):
                weight.copy_(dequantise(*quantise(weight)))
    dtypes = {"fp32": torch.float32, "fp16": torch.float16}
    model = model.to(rig.device, dtypes.get(kind, torch.bfloat16))
    found = model(**{name: tensor.to(rig.device) for name, tensor in given.items()})
    return max(relative(found.velocity, wanted.velocity), relative(found.logits, wanted.logits))


def pipelines(rig: Rig) -> list[Pipeline]:
    """The embedded model on the CPU and on the device."""
    return [Pipeline(device=device, dtype=torch.float32) for device in ("cpu", rig.device)]


def embedded_caption(rig: Rig) -> float:
    """1 where the embedded model's caption of its sample clip is the CPU's, else 0."""
    greedy = Sampling(temperature=0.0)
    wanted, found = (pipe.caption(pipe.latent_of(SAMPLE)[0], sampling=greedy) for pipe in pipelines(rig))
    return float(wanted == found != "")


def embedded_clip(rig: Rig) -> float:
    """How far the embedded model's clip is from the CPU's, in grey levels of 255 on average."""
    prompt = "a large red circle moves right quickly on a navy background"
    wanted, found = (pipe.generate(prompt, sampling=Sampling(steps=8)).float() for pipe in pipelines(rig))
    return float((wanted - found).abs().mean())


# Counts


def waits_per_step(job: str, rig: Rig) -> float:
    model, run = rig.network(2), rig.counted_jobs()[job]
    few, many = (rig.count(partial(run, model, steps)).waits for steps in (1, 3))
    return (many - few) / 2


def launches_per_block(rig: Rig) -> float:
    few, many = (rig.count(rig.one_pass(rig.network(blocks))).launches for blocks in (1, 3))
    return (many - few) / 2


def peak_against_estimate(rows: int, logits: int, rig: Rig) -> float:
    """Peak of a pass beside the weights over ``pass_bytes``."""
    config, text = rig.scale.config, rig.scale.text
    video = video_tokens(rig.scale.size, config)
    estimate = pass_bytes(config, rows=rows, video=video, text=text, itemsize=2, logits=logits)
    return rig.count(rig.one_pass(rig.network(2), rows, logits)).peak / estimate


def peak_of(job: str, rig: Rig) -> float:
    """What a run of two steps holds beside the weights, GB."""
    # On a fake card two blocks do: they take turns with their memory, and only a cache on the card grows with them.
    model = rig.network(None if rig.kind == "cuda" or "on the card" in job else 2)
    return rig.count(partial(rig.counted_jobs()[job], model, 2)).peak / GB


# Times


def text_step(rig: Rig) -> float:
    """Milliseconds to draw the words of one step."""
    logits = torch.randn(1, rig.scale.text, rig.scale.config.vocab_size, device=rig.device, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    times = in_turn({"draw": lambda: draw_clean_tokens(logits, generator=generator)}, 5, rig.device)["draw"]
    return 1000 * median(times[1:])


@cache
def pass_times(rig: Rig) -> dict[str, float]:
    """Seconds of a full pass, and of the text alone beside a kept clip, on the device and from the host."""
    places = ("device", "host") if rig.kind == "cuda" else ("device",)
    caches = {place: VideoCache(fp8=True, place=place) for place in places}
    noise, context = rig.inputs
    jobs = caption_passes(rig.network(), noise, rig.words().to(rig.device), context[:, :1], caches)
    for place in places:
        jobs.pop(f"fill, {place}")()
    return {name: median(taken) for name, taken in in_turn(jobs, rig.scale.turns, rig.device).items()}


def static_against_exact(rig: Rig) -> float:
    """A caption of 50 steps: exact over static."""
    seconds = pass_times(rig)
    return 50 * seconds["full"] / (seconds["full"] + 49 * seconds["text, device"])


def host_against_device(rig: Rig) -> float:
    if rig.kind == "cpu":
        raise NotRun("on a CPU there is no other memory to fetch from")
    return pass_times(rig)["text, host"] / pass_times(rig)["text, device"]


# ComfyUI


def inside(rig: Rig, function: str, *calls: dict[str, Any], options: tuple[str, ...] = ()) -> list[Any]:
    """What ``function`` of ``inside.py`` returns for each of ``calls``, in a ComfyUI started with ``options``."""
    import pytest
    from in_comfyui_host import NoComfyUI

    rig.clear()
    try:
        with comfyui(rig.device.type, *options) as call:
            return [call(function, timeout=600, **arguments) for arguments in calls]
    except NoComfyUI as reason:
        raise NotRun(str(reason)) from None
    except pytest.fail.Exception as error:  # not an Exception: it would end the run
        raise RuntimeError(str(error).splitlines()[-1]) from None


@cache
def beside_core(rig: Rig) -> list[dict[str, Any]]:
    """Passes of ours and of core's Wan inside ComfyUI, one block deep and two: what ``forward.py`` measures."""
    width = {name: getattr(rig.scale.config, name) for name in ("dim", "ffn_dim", "num_heads", "text_dim")}
    settings = {"width": width, "video": rig.scale.beside_core, "turns": rig.scale.turns}
    settings |= {"device": rig.device.type, "dtype": "bfloat16"}
    return inside(rig, "passes", *({"blocks": blocks, **settings} for blocks in (1, 2)))


def ratio_to_core(rig: Rig) -> float:
    """Ours with video and text over core's Wan on as many tokens."""
    seconds = beside_core(rig)[-1]["seconds"]
    return ratio_of(seconds["ours, video and text"], seconds["core, equal tokens"])


def launches_inside(rig: Rig) -> float:
    """Kernels of a block with text on ComfyUI's own."""
    first, second = (one["launches"] for one in beside_core(rig))
    if rig.kind == "cpu":
        raise NotRun("launches are a card's")
    return float(second["ours, video and text"] - first["ours, video and text"])


def within_card(job: str, gb: float, rig: Rig) -> float:
    """GB that a job at this scale takes of a small card inside ComfyUI, with fp8 weights and ComfyUI's own offload.

    The card is made small twice over: torch may take no more, and ComfyUI is told to leave the rest alone.
    """
    options: tuple[str, ...] = ()
    if rig.kind == "cuda":
        spare = torch.cuda.get_device_properties(0).total_memory - gb * GB
        options = ("--reserve-vram", f"{max(0.5, spare / GIB):.2f}")
    scale = rig.scale
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random-fp8.safetensors"
        write_random(model, scale.config, "fp8")
        given = {"model": str(model), "gb": gb, "job": job, "size": list(scale.size), "text": scale.text}
        (peak,) = inside(rig, "peak", {**given, "context": scale.context}, options=options)
    return float(peak) / GB


# The tests


def failed_tests(rig: Rig) -> float:
    """How many of the tests marked ``cuda`` fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests/model"]
    report = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|error|skipped)", report)}
    if not counts.get("passed") and not counts.get("failed"):
        raise NotRun(f"all {counts.get('skipped', 0)} were skipped: they need a card")
    return float(counts.get("failed", 0) + counts.get("error", 0))


# What a claim may be off by. float32 without TF32; the others as far as their mantissas reach through two blocks.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01, "fp8": 0.1}
WITHOUT_WAITS = ("text to video", "video to text, exact", "video to text, static", "joint", "ranking")
PASSES = {"one row": (1, 0), "both rows of guidance": (2, 0), "a row with logits": (1, 1)}
# GB at 832x480, 81 frames and 256 text tokens, with both passes of guidance in one batch: what is counted, and a tenth.
MEMORY = {
    "text to video": 2.0,
    "video to text, exact": 1.0,
    "video to text, float8 cache on the card": 4.2,
    "video to text, cache on the host": 1.0,
    "joint": 2.0,
    "ranking": 2.0,
}


def claims() -> list[Claim]:
    counted, sized = partial(Claim, counted=True), partial(Claim, sized=True)
    t2v, v2t = partial(within_card, "text_to_video", 8.0), partial(within_card, "video_to_text", 6.0)
    found = [
        Claim(f"{kind} agrees with the CPU's float32, {width} width", "at most", limit, "of the norm",
              partial(agreement, width, kind), 10)
        for width in ("small", "full")
        for kind, limit in TOLERANCE.items()
    ]  # fmt: skip
    found += [
        Claim("the embedded model's caption is the CPU's", "at least", 1, "(1 is yes)", embedded_caption, 15),
        Claim("the embedded model's clip is the CPU's", "at most", 1, "of 255", embedded_clip, 15),
    ]
    for job in WITHOUT_WAITS:
        found.append(counted(f"waits for the card a step: {job}", "at most", 0, "", partial(waits_per_step, job), 15))
    found.append(counted("kernels a block, uvg_core alone", "at most", 45, "", launches_per_block, 15))
    for name, of in PASSES.items():
        measure = partial(peak_against_estimate, *of)
        found.append(counted(f"peak of a pass over its estimate: {name}", "at most", 1.1, "times", measure, 10))
    for job, limit in MEMORY.items():
        found.append(counted(f"memory beside the weights: {job}", "at most", limit, "GB", partial(peak_of, job), 30))
    return [
        *found,
        sized("drawing the words of a step", "at most", 20, "ms", text_step, 5),
        sized("a caption of 50 steps, exact over static", "at least", 20, "times", static_against_exact, 40),
        sized("a text step, cache on the host over on the card", "at most", 3, "times", host_against_device, 40),
        sized("ComfyUI: a joint pass over core's Wan on as many tokens", "at most", 1.05, "times", ratio_to_core, 40),
        Claim("ComfyUI: kernels a block", "at most", 36, "", launches_inside, 5),
        sized("ComfyUI: text to video, fp8, on a card of 8 GB", "at most", 7.5, "GB", t2v, 90),
        sized("ComfyUI: a caption, fp8, on a card of 6 GB", "at most", 5.7, "GB", v2t, 90),
        Claim("tests marked cuda that fail", "at most", 0, "", failed_tests, 30),
    ]
