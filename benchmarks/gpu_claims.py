"""What a card is asked for, each with its limit: agreement with the CPU, counts, times, ComfyUI, the tests."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_rig import SMALL, NotRun, Rig
from limits import fp8_file
from measuring import in_turn, random_weights, ratio_of
from torch import Tensor

from uvg_core.checkpoint.quant import dequantise, is_quantised_in_fp8, quantise
from uvg_core.config import ModelConfig
from uvg_core.flow.discrete import draw_clean_tokens
from uvg_core.model import PassOptions, UniViGU, VideoCache
from uvg_core.model.memory import pass_bytes, video_tokens
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
GB = 1e9
SAMPLE = ROOT / "samples" / "uvg_sample.mp4"


@dataclass(frozen=True)
class Claim:
    """``holds``: ``at most`` or ``at least`` the ``limit``, in ``unit``. ``seconds``: about as long on a small card.
    ``kinds``: where it is tried. ``sized``: the limit is one for a card and the released size."""

    name: str
    holds: str
    limit: float
    unit: str
    measure: Callable[[Rig], float]
    seconds: float = 20
    kinds: tuple[str, ...] = ("cuda", "cpu")
    sized: bool = False

    def outcome(self, kind: str, value: float) -> Verdict:
        if self.sized and kind == "cpu":
            return Verdict(self, kind, "not run", why=f"rehearsed at a small size: {value:.4g} {self.unit}".strip())
        held = value <= self.limit if self.holds == "at most" else value >= self.limit
        return Verdict(self, kind, "pass" if held else "fail", value)


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    kind: str
    verdict: str
    value: float | None = None
    why: str = ""
    seconds: float = 0.0

    def row(self) -> str:
        limit = f"{self.claim.holds} {self.claim.limit:g} {self.claim.unit}".strip()
        value = self.why if self.value is None else f"{self.value:.4g} {self.claim.unit}".strip()
        return f"| {self.claim.name} | {self.kind} | {limit} | {value} | {self.verdict} | {self.seconds:.0f} |"


# Agreement with the CPU


def relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.float().cpu(), wanted.float().cpu()
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def apart(rig: Rig, config: ModelConfig, kind: str) -> float:
    """How far a pass in ``kind`` on the device is from one in float32 on the CPU: the larger of velocity and logits."""
    rig.timed_only_here()
    model = random_weights(config, torch.device("cpu")).float()
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


def embedded_caption(rig: Rig) -> float:
    """1 where the embedded model's caption of its sample clip is the CPU's, else 0."""
    rig.timed_only_here()
    said = []
    for device in ("cpu", rig.device):
        pipe = Pipeline(device=device, dtype=torch.float32)
        said.append(pipe.caption(pipe.latent_of(SAMPLE)[0], sampling=Sampling(temperature=0.0)))
    return float(said[0] == said[1] != "")


def embedded_clip(rig: Rig) -> float:
    """How far the embedded model's clip is from the CPU's, in grey levels of 255 on average."""
    rig.timed_only_here()
    prompt, plan = "a large red circle moves right quickly on a navy background", Sampling(steps=8)
    clips = [
        Pipeline(device=device, dtype=torch.float32).generate(prompt, sampling=plan) for device in ("cpu", rig.device)
    ]
    return float((clips[0].float() - clips[1].float()).abs().mean())


# Counts


def waits_per_step(job: str, rig: Rig) -> float:
    model, run = rig.network(2), rig.counted_jobs()[job]
    few, many = (rig.count(partial(run, model, steps)) for steps in (1, 3))
    if few.waits is None or many.waits is None:
        raise NotRun("there is no card to wait for")
    return (many.waits - few.waits) / 2


def launches_per_block(rig: Rig) -> float:
    found = []
    given = rig.inputs
    clock = torch.zeros(1, device=rig.device)
    words = rig.words().to(rig.device)
    for blocks in (1, 3):
        model = rig.network(blocks)

        @torch.no_grad()
        def once(model: UniViGU = model) -> Any:
            return model(
                given["noise"], words, clock + 500, clock, given["context"], options=PassOptions(want_logits=False)
            )

        found.append(rig.count(once).launches)
    if found[0] is None or found[1] is None:
        raise NotRun("launches are a card's")
    return (found[1] - found[0]) / 2


def peak_against_estimate(rows: int, logits: int, rig: Rig) -> float:
    """Peak of a pass beside the weights over ``pass_bytes``."""
    if rig.kind == "cpu":
        raise NotRun("attention on a CPU takes other memory")
    model, given, config = rig.network(2), rig.inputs, rig.scale.config
    clock, words = torch.zeros(rows, device=rig.device), rig.words(rows).to(rig.device)

    @torch.no_grad()
    def once() -> Any:
        noise, context = (given[n].expand(rows, *given[n].shape[1:]) for n in ("noise", "context"))
        return model(
            noise,
            words,
            clock + 500,
            clock,
            context,
            options=PassOptions(want_logits=slice(0, logits) if logits else False),
        )

    video, text = video_tokens(rig.scale.size, config), rig.scale.text
    estimate = pass_bytes(config, rows=rows, video=video, text=text, itemsize=2, logits=logits)
    return rig.count(once).peak / estimate


def peak_of(job: str, rig: Rig) -> float:
    """What a run of two steps holds beside the weights, GB."""
    if rig.kind == "cpu":
        raise NotRun("a CPU's memory is not a card's")
    # On a fake card two blocks do: they take turns with their memory, and only a cache on the card grows with them.
    model = rig.network(None if rig.kind == "cuda" or "on the card" in job else 2)
    return rig.count(partial(rig.counted_jobs()[job], model, 2)).peak / GB


# Times


def text_step(rig: Rig) -> float:
    """Milliseconds to draw the words of one step."""
    rig.timed_only_here()
    logits = torch.randn(1, rig.scale.text, rig.scale.config.vocab_size, device=rig.device, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    times = in_turn({"draw": lambda: draw_clean_tokens(logits, generator=generator)}, 5, rig.device)["draw"]
    return 1000 * median(times[1:])


def times_static(rig: Rig) -> dict[str, float]:
    """Seconds of a full pass, and of the text alone beside a kept clip, on the device and from the host."""
    rig.timed_only_here()
    model, given = rig.network(), rig.inputs
    clock, words = torch.zeros(1, device=rig.device), rig.words().to(rig.device)
    caches: dict[str, VideoCache | None] = {"full": None, "device": VideoCache(fp8=True)}
    if rig.kind == "cuda":
        caches["host"] = VideoCache(fp8=True, place="host")

    @torch.no_grad()
    def once(cache: VideoCache | None) -> Any:
        given_now = given["noise"], words, clock, clock + 500, given["context"][:, :1]
        return model(*given_now, options=PassOptions(want_velocity=False, cache=cache))

    for cache in caches.values():
        once(cache)
    jobs = {name: partial(once, cache) for name, cache in caches.items()}
    return {name: median(taken) for name, taken in in_turn(jobs, rig.scale.turns, rig.device).items()}


def static_against_exact(rig: Rig) -> float:
    """A caption of 50 steps: exact over static."""
    seconds = times_static(rig)
    return 50 * seconds["full"] / (seconds["full"] + 49 * seconds["device"])


def host_against_device(rig: Rig) -> float:
    if rig.kind == "cpu":
        raise NotRun("on a CPU there is no other memory to fetch from")
    seconds = times_static(rig)
    return seconds["host"] / seconds["device"]


# ComfyUI


def comfyui(rig: Rig, *options: str) -> Any:
    """A process in ComfyUI's Python, started with ``options``; the one that runs where it was started with the same."""
    from in_comfyui_host import Inside, NoComfyUI, find_comfyui, options_for

    rig.timed_only_here()
    if rig.inside is None or rig.inside.options != (*options_for(rig.device.type), *options):
        rig.close()
        try:
            found = find_comfyui()
        except NoComfyUI as reason:
            raise NotRun(str(reason)) from None
        folder = Path(rig.opened.enter_context(tempfile.TemporaryDirectory()))
        chosen = (*options_for(rig.device.type), *options)
        rig.inside = rig.opened.enter_context(Inside(found, folder / "base", chosen))
    return rig.inside


def beside_core(rig: Rig) -> list[dict[str, Any]]:
    """Passes of ours and of core's Wan inside ComfyUI, one block deep and two: what ``forward.py`` measures."""
    if not rig.beside_core:
        spec = importlib.util.find_spec("diffusers")
        if spec is None or spec.origin is None:
            raise NotRun("diffusers is not installed")
        (frames, side), config = rig.scale.beside_core, rig.scale.config
        arguments = {"video": [frames, side, side], "text": (side // 2) ** 2}
        width = {name: getattr(config, name) for name in ("dim", "ffn_dim", "num_heads", "text_dim")}
        arguments |= {"extra": str(Path(spec.origin).parents[1]), "device": rig.device.type, "dtype": "bfloat16"}
        arguments |= {"turns": rig.scale.turns, "width": width}
        measure = partial(comfyui(rig).call, "../../../benchmarks/forward", "measure", timeout=600, **arguments)
        rig.beside_core = [measure(blocks=blocks) for blocks in (1, 2)]
    return rig.beside_core


def time_beside_core(rig: Rig) -> float:
    """Ours with video and text over core's Wan on as many tokens."""
    seconds = beside_core(rig)[-1]["seconds"]
    return ratio_of(seconds["ours, video and text"], seconds["core, equal tokens"])


def launches_inside(rig: Rig) -> float:
    """Kernels of a block with text on ComfyUI's own."""
    first, second = (one["launches"].get("ours, video and text") for one in beside_core(rig))
    if first is None or second is None:
        raise NotRun("launches are a card's")
    return float(second - first)


def within_card(job: str, rig: Rig) -> float:
    """GB that a job at this scale takes of a small card inside ComfyUI, with fp8 weights and ComfyUI's own offload."""
    rig.timed_only_here()
    gb = {"text_to_video": 8.0, "video_to_text": 6.0}[job]
    options: tuple[str, ...] = ()
    if rig.kind == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        options = ("--reserve-vram", f"{max(0.5, (total - gb * GB) / 2**30):.2f}")
    inside = comfyui(rig, *options)
    with tempfile.TemporaryDirectory() as folder:
        model = fp8_file(Path(folder) / "random-fp8.safetensors", rig.scale.config)
        told = inside.call(
            "../../../benchmarks/limits", "measure", timeout=600, model=str(model), gb=gb, job=job, steps=2,
            size=list(rig.scale.size), text=rig.scale.text, context=rig.scale.context, caches=["static"],
        )  # fmt: skip
    return max(one["allocated"] for one in told) / GB


# The tests


def failed_tests(rig: Rig) -> float:
    """How many of the tests marked ``cuda`` fail."""
    rig.timed_only_here()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests/model"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    numbers = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", told)}
    if not numbers.get("passed") and not numbers.get("failed"):
        raise NotRun(f"all {numbers.get('skipped', 0)} were skipped: they need a card")
    return float(numbers.get("failed", 0) + numbers.get("error", 0) + numbers.get("errors", 0))


# What a claim may be off by. float32 without TF32; the others as far as their mantissas reach through two blocks.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01, "fp8": 0.1}
COUNT = ("cuda", "fake", "cpu")
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
    found = [
        Claim(f"{kind} agrees with the CPU's float32, {width} width", "at most", limit, "of the norm",
              partial(_agreement, width, kind), 10)
        for width in ("small", "full")
        for kind, limit in TOLERANCE.items()
    ]  # fmt: skip
    found += [
        Claim("the embedded model's caption is the CPU's", "at least", 1, "(1 is yes)", embedded_caption, 15),
        Claim("the embedded model's clip is the CPU's", "at most", 1, "of 255", embedded_clip, 15),
    ]
    jobs = ("text to video", "video to text, exact", "video to text, static", "joint", "ranking")
    found += [
        Claim(f"waits for the card a step: {job}", "at most", 0, "", partial(waits_per_step, job), 15, COUNT)
        for job in jobs
    ]
    found += [
        Claim("kernels a block, uvg_core alone", "at most", 45, "", launches_per_block, 15, COUNT),
        *(
            Claim(f"peak of a pass over its estimate: {name}", "at most", 1.1, "times",
                  partial(peak_against_estimate, rows, logits), 10, COUNT)
            for name, rows, logits in (("one row", 1, 0), ("both rows of guidance", 2, 0), ("a row with logits", 1, 1))
        ),
        *(
            Claim(f"memory beside the weights: {job}", "at most", limit, "GB", partial(peak_of, job), 30, COUNT)
            for job, limit in MEMORY.items()
        ),
        Claim("drawing the words of a step", "at most", 20, "ms", text_step, 5, sized=True),
        Claim("a caption of 50 steps, exact over static", "at least", 20, "times", static_against_exact, 40,
              sized=True),
        Claim("a text step, cache on the host over on the card", "at most", 3, "times", host_against_device, 40,
              sized=True),
        Claim("ComfyUI: a joint pass over core's Wan on as many tokens", "at most", 1.05, "of the time",
              time_beside_core, 40, sized=True),
        Claim("ComfyUI: kernels a block", "at most", 36, "", launches_inside, 5),
        Claim("ComfyUI: text to video, fp8, on a card of 8 GB", "at most", 7.5, "GB",
              partial(within_card, "text_to_video"), 90, sized=True),
        Claim("ComfyUI: a caption, fp8, on a card of 6 GB", "at most", 5.7, "GB",
              partial(within_card, "video_to_text"), 90, sized=True),
        Claim("tests marked cuda that fail", "at most", 0, "", failed_tests, 30),
    ]  # fmt: skip
    return found


def _agreement(width: str, kind: str, rig: Rig) -> float:
    return apart(rig, SMALL if width == "small" else rig.scale.compared, kind)
