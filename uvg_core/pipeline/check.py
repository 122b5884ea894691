"""Does a checkpoint work here, and how is it meant to be run: what a person pastes into a bug report.

Meant for the released weights, which this project has never seen: its own tests run on random weights of the same
names and sizes, and on small trained ones.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checkpoint import convert, inspect_checkpoint
from ..config import CheckpointConfig, RunConfig
from ..errors import UniViGUError
from ..io import PACK
from ..media.tokenizer import Tokenizer
from ..media.vae import SPATIAL, TEMPORAL, latent_shape
from ..media.video import ClipSpec, read_clip
from ..model import PassOptions, UniViGU
from ..sampling import GuidedDenoiser, Ranking, Sampling, Size, text_to_video, video_to_text
from ..sampling.start import as_text_content, require_ids
from .components import LARGE_BYTES
from .evidence import Predict, Sample, Verdict, weigh
from .pipeline import Pipeline, given

CLIPS = PACK / "samples" / "check"
# The first that fits what the checkpoint reads: the release's example, or the embedded model's own world.
KNOWN_PROMPTS = (
    "A golden retriever runs across a sunlit grassy field filled with tiny wildflowers.",
    "a large red circle moves right quickly on a navy background",
)
FEW_STEPS = 4
# How much of a clip the losses look at: frames, and patches of the video on a card and on a CPU.
MOST_FRAMES = 17
MOST_TOKENS = {"cpu": 1000}
USUAL_TOKENS = 8000

WRITTEN = ("run", "latent_space", "time_rounding")  # facts that the verdict knows better

Result = TypeVar("Result")


@dataclass(frozen=True)
class Shown:
    """A clip of real footage and what is to be seen in it, in as many words as a model's texts hold."""

    path: Path
    caption: str

    def pixels(self, frames: int, height: int, width: int) -> Tensor:
        """uint8 ``[T,H,W,3]``."""
        return read_clip(self.path, ClipSpec(frames, height, width)).pixels


def shown_clips(tokenizer: Tokenizer, run: RunConfig) -> list[Shown]:
    """The clips in ``samples/check``. Raises UniViGUError where they are missing."""
    try:
        captions: dict[str, str] = json.loads((CLIPS / "captions.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UniViGUError(
            f"{CLIPS}: the clips that check looks at are missing ({error}); they are part of the pack: get it whole"
        ) from None
    room = min(run.text_length, run.context_length)
    found = []
    for name, caption in captions.items():
        words = caption.split()
        while len(words) > 1 and len(tokenizer.ids(" ".join(words))) > room:
            words.pop()
        found.append(Shown(CLIPS / name, " ".join(words)))
    return found


def looked_at(run: RunConfig, size: Size, large: bool, device: torch.device) -> tuple[int, int, int]:
    """Frames, height and width that the losses are taken at: the checkpoint's own with fewer frames, and smaller where
    a pass would take too long. ``size`` has the last word."""
    frames = given(size.frames, min(run.frames, MOST_FRAMES))
    height, width = given(size.height, run.height), given(size.width, run.width)
    if large and size.height is None and size.width is None:
        tokens = ((frames - 1) // TEMPORAL + 1) * height * width / (2 * SPATIAL) ** 2
        share = min(1.0, MOST_TOKENS.get(device.type, USUAL_TOKENS) / tokens) ** 0.5
        height, width = (max(16, round(side * share / 16) * 16) for side in (height, width))
    latent_shape(frames, height, width)
    return frames, height, width


def thoroughness(large: bool) -> dict[str, int]:
    """Options of ``weigh``: small networks see little difference, and are fast."""
    return {"draws": 1, "at_once": 1} if large else {"draws": 4, "at_once": 8}


def environment(device: torch.device) -> list[str]:
    """Versions and the device, a line each."""
    packages = []
    for name in ("torch", "diffusers", "transformers"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    where = str(device)
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        where = f"{about.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    return [
        f"pack          {pack_version()}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"packages      {', '.join(packages)}",
        f"device        {where}, {torch.get_num_threads()} threads",
    ]


def pack_version() -> str:
    """From ``pyproject.toml``: the pack is often a folder, not an installed package."""
    try:
        text = (PACK / "pyproject.toml").read_text("utf-8")
        return next(line.split('"')[1] for line in text.splitlines() if line.startswith("version"))
    except (OSError, StopIteration, IndexError):
        return "unknown"


def measured(what: str, device: torch.device, job: Callable[[], Result]) -> tuple[Result, str]:
    """What ``job`` gives, and a line with its time and, where it can be told, its peak of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    result = job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    memory = ""
    if device.type == "cuda":
        memory = f", peak {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB on the card"
    elif sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        memory = f", the process has had {peak / 1e9:.2f} GB at most"
    return result, f"{what}: {seconds:.1f} s{memory}"


def not_finite(tensor: Tensor) -> str:
    """``all finite``, or how many values are not."""
    bad = int((~tensor.isfinite()).sum())
    return "all finite" if not bad else f"{bad} of {tensor.numel()} values not finite"


def clocked(network: UniViGU, rounding: str) -> Predict:
    """The network's velocity with its text held clean, and with its clocks rounded so."""
    config = replace(network.config, time_rounding=rounding)

    def predict(video: Tensor, ids: Tensor, mask: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        kept, network.config = network.config, config
        try:
            require_ids(network.config, ids)
            text, still = as_text_content(network, ids), torch.zeros_like(time)
            found = network(video, text, time, still, condition, mask, PassOptions(want_logits=False)).velocity
        finally:
            network.config = kept
        assert found is not None
        return found

    return predict


def lines_of(verdict: Verdict, clips: int) -> list[str]:
    """The verdict for people."""
    rows = [f"errors on {clips} clips of real footage, as shares of what their mean and variance alone give:"]
    rows += [f"  {name:<22} {error:.3f}" for name, error in verdict.errors.items()]
    rows.append(f"skill         {verdict.skill:.2f} (0 for weights at random)")
    return rows + [str(answer) for answer in verdict.answers]


@dataclass
class Check:
    """A checkpoint's check: ``lines`` gives the text block as it forms, ``verdict`` is there afterwards."""

    pipe: Pipeline
    size: Size = field(default_factory=Size)
    verdict: Verdict | None = None
    said: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Raises UniViGUError at the first thing that does not work."""
        for part in (self._about, self._parts_fit, self._verdict, self._jobs):
            for line in part():
                self.said.append(line)
                yield line

    def _about(self) -> Iterator[str]:
        pipe, config = self.pipe, self.pipe.config
        yield from environment(pipe.device)
        report = inspect_checkpoint(pipe.components.path)
        stored = ", ".join(report.dtypes)
        runs_in = pipe.components.network_dtype
        runs = "as stored" if runs_in is None else str(runs_in).removeprefix("torch.")
        name, size = pipe.components.path.name, report.nbytes / 1e9
        yield f"file          {name}, {size:.2f} GB, {report.layout} names, {stored}"
        yield f"runs in       {runs}"
        space = f"{config.model.latent_space} latents{' (assumed)' if 'latent_space' in report.assumed else ''}"
        states = f"{pipe.components.text_states} states{'' if config.run.text_states else ' (assumed)'}"
        for lora in pipe.loras:
            yield f"LoRA          {lora}"
        yield f"stated        {space}, {states}; checked: {config.run.checked or 'never'}"

    def _parts_fit(self) -> Iterator[str]:
        pipe = self.pipe
        with pipe.network() as network:
            config = network.config  # loading is strict: every key and shape is right from here on
            count = sum(p.numel() for p in network.parameters())
            blocks = f"{config.num_layers} blocks of width {config.dim}"
            yield f"ok  keys and shapes: {count / 1e9:.3f}B parameters, {blocks}"
            generator = torch.Generator().manual_seed(0)
            latent = torch.randn(1, config.in_dim, 2, 8, 8, generator=generator).to(pipe.device)
            context = torch.randn(1, 8, config.text_dim, generator=generator).to(pipe.device)
            tokens = torch.randint(config.vocab_size, (1, 8), generator=generator).to(pipe.device)
            text = tokens if config.text_flow == "discrete" else torch.randn(1, 8, config.dim).to(pipe.device)
            clock = torch.full((1,), 500.0, device=pipe.device)
            with torch.no_grad():
                velocity, logits = network(latent, text, clock, clock, context)
            for name, part in (("velocity", velocity), ("logits", logits)):
                assert part is not None
                if not bool(part.isfinite().all()):
                    raise UniViGUError(
                        f"{pipe.components.path}: the {name} of a forward pass is not finite ({not_finite(part)}); try "
                        "--dtype bf16 or fp32"
                    )
                yield f"ok  {name} finite: {list(part.shape)}, standard deviation {part.float().std().item():.3f}"
            text_to_video(GuidedDenoiser(network, context), latent, Sampling(steps=2))
            video_to_text(GuidedDenoiser(network), latent, Sampling(steps=2, text_length=4))
            yield "ok  two steps of each sampler"

    def _verdict(self) -> Iterator[str]:
        pipe, run = self.pipe, self.pipe.config.run
        large = pipe.components.path.is_file() and pipe.components.path.stat().st_size > LARGE_BYTES
        frames, height, width = looked_at(run, self.size, large, pipe.device)
        samples = self.samples(frames, height, width)

        def job(network: UniViGU) -> Verdict:
            return weigh(
                clocked(network, "none"),
                clocked(network, "bfloat16"),
                samples,
                null=pipe.null_condition,
                **thoroughness(large),
                progress=pipe.components.progress,
            )

        verdict, line = measured(
            f"losses at {width}x{height}x{frames}", pipe.device, lambda: pipe.components.on_network(job)
        )
        self.verdict = verdict
        yield line
        yield from lines_of(verdict, len(samples))
        stated = pipe.config.model.latent_space, pipe.components.text_states
        found = verdict.space.best or stated[0], verdict.states.best or stated[1]
        if found != stated:
            yield (
                f"differs       stated are {stated[0]} latents and {stated[1]} states, "
                f"found {found[0]} and {found[1]}. What follows runs as found. --write FILE keeps that in a file; else "
                "pass --latent-space and --text-states as found"
            )
        model, run = verdict.applied(pipe.config.model, run, f"check of {pack_version()}")
        pipe.run_as(replace(pipe.config, model=model, run=run))

    def samples(self, frames: int, height: int, width: int) -> list[Sample]:
        """The clips and captions in ``samples/check``, through the VAE and the text encoder."""
        pipe, run = self.pipe, self.pipe.config.run
        clips = shown_clips(pipe.tokenizer, run)
        prompts = [*[clip.caption for clip in clips], ""]
        by_states = pipe.conditions_by_states(prompts)
        if pipe.config.model.in_dim != 16:
            raise UniViGUError(f"{pipe.components.path}: {pipe.config.model.in_dim} latent channels; expected Wan's 16")
        raw = pipe.raw_latents([clip.pixels(frames, height, width) for clip in clips])
        return [
            Sample(
                clip.path.stem,
                raw[k],
                pipe.tokenizer.ids(clip.caption),
                {kind: states[k : k + 1] for kind, states in by_states.items()},
                {kind: states[-1:] for kind, states in by_states.items()},
            )
            for k, clip in enumerate(clips)
        ]

    def _jobs(self) -> Iterator[str]:
        """One of each job, as the verdict says, with times."""
        pipe, size, run = self.pipe, self.size, self.pipe.config.run
        prompt = next((known for known in KNOWN_PROMPTS if len(pipe.tokenizer.ids(known)) <= run.context_length), "a")
        pixels, line = measured(
            f"text to video, {FEW_STEPS} steps",
            pipe.device,
            lambda: pipe.generate(prompt, size=size, sampling=Sampling(steps=FEW_STEPS)),
        )
        spread = pixels.float().std().item()
        if spread < 1:
            raise UniViGUError(
                f"{pipe.components.path}: the known prompt gave a flat picture (standard deviation {spread:.2f} of "
                "255); try --latent-space raw or normalised, and --dtype bf16 or fp32"
            )
        assert pipe.sampled is not None
        yield f"{line}; latent {not_finite(pipe.sampled.latent)}"
        yield f"ok  “{prompt}” gave {list(pixels.shape)} with a standard deviation of {spread:.1f} of 255"
        clips = shown_clips(pipe.tokenizer, run)
        large = pipe.components.path.is_file() and pipe.components.path.stat().st_size > LARGE_BYTES
        latent = pipe.encode_clip(clips[0].pixels(*looked_at(run, size, large, pipe.device)))
        text, line = measured(
            f"video to text, {FEW_STEPS} steps",
            pipe.device,
            lambda: pipe.caption(latent, sampling=Sampling(steps=FEW_STEPS)),
        )
        yield f"{line}; “{text[:200]}”"
        texts = list(dict.fromkeys(clip.caption for clip in clips))
        scores, line = measured(
            f"likelihood of {len(texts)} captions", pipe.device, lambda: pipe.rank(latent, texts, Ranking(samples=1))
        )
        place = int((scores > scores[0]).sum()) + 1
        yield f"{line}; the clip's own ranks {place} of {len(texts)}, {not_finite(scores)}"

    def write(self, path: Path, dtype: str | None, progress: Callable[[int, int], object] | None = None) -> None:
        """The checkpoint, LoRAs merged, as a native file that says what was found, in ``dtype`` of ``convert``."""
        assert self.verdict is not None
        config: CheckpointConfig = self.pipe.config
        stated: dict[str, Any] = {k: v for k, v in self.pipe.components.overrides.items() if k not in WRITTEN}
        convert(
            self.pipe.components.path,
            path,
            dtype=dtype,
            on_progress=progress,
            loras=self.pipe.loras,
            **{
                **stated,
                "latent_space": config.model.latent_space,
                "time_rounding": config.model.time_rounding,
                "run": {"text_states": config.run.text_states, "checked": config.run.checked},
            },
        )

    def to_json(self) -> dict[str, Any]:
        """The lines, and the verdict in numbers."""
        return {"lines": self.said, "verdict": None if self.verdict is None else self.verdict.to_json()}
