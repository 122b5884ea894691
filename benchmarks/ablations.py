"""The paper's claims, one by one, at a small budget that all arms share; numbers go into a JSON file, arm by arm.

    python benchmarks/ablations.py WORKDIR [--arms ...] [--seeds 0 1 2] [--clips 512]

WORKDIR is one that ``python -m recipes.worlds.recipe`` made: its generator is where most arms start. Every arm
takes the same number of steps of the same number of clips (Knowledge Recall a third, Capability Refinement the rest,
unless the arm says otherwise), on one thread, so that arms may run side by side. An arm that was done is not done
again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from quality import digest

from recipes.worlds.evaluation import Exam
from uvg_core.config import CheckpointConfig
from uvg_core.data.shards import Shards
from uvg_core.io import write_text
from uvg_core.model import UniViGU
from uvg_core.pipeline.components import Components
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.training.config import TrainConfig, from_dict
from uvg_core.training.objective import plain_attention
from uvg_core.training.run import make_accelerator
from uvg_core.training.start import starting_network
from uvg_core.training.trainer import Trainer

NUMBERS = Path(__file__).parent / "numbers" / "ablations.json"
STEPS, BATCH = 600, 48
SAMPLER_STEPS = 12
MIXED = {"text_to_video": 0.4, "video_to_text": 0.3, "joint": 0.3}


@dataclass(frozen=True)
class Arm:
    """What an arm does differently. ``shares``: of the steps, for recall and refine."""

    says: str
    start: str = "generate"
    shares: tuple[float, float] = (1 / 3, 2 / 3)
    jobs: dict[str, float] = field(default_factory=lambda: dict(MIXED))
    dropout: dict[str, float] = field(
        default_factory=lambda: {"text_to_video": 0.1, "video_to_text": 0.75, "joint": 0.2}
    )
    empty_text: float = 0.2
    more: dict[str, Any] = field(default_factory=dict)
    change: Callable[[UniViGU], None] | None = None


def one_expert(model: UniViGU) -> None:
    """Both streams go through one feed-forward: the text's is the video's, weights and all."""
    for block in model.blocks:
        block.ffn_t = block.ffn


ARMS = {
    "unified": Arm("from the generator, both stages, two experts, discrete uniform"),
    "scratch": Arm("from random weights instead of the generator", start="start"),
    "no recall": Arm("refinement for all steps, no stage 1", shares=(0.0, 1.0)),
    "no dropout": Arm(
        "the prompt is never dropped from video-to-text; from the rest as often as guidance needs",
        dropout={"text_to_video": 0.1, "video_to_text": 0.0, "joint": 0.1},
    ),
    "one expert": Arm("one feed-forward for both streams", change=one_expert),
    "mask": Arm("discrete flow from mask tokens", more={"source": "mask"}),
    "embedding": Arm("embedding flow", more={"text_flow": "embedding"}),
    "captioner": Arm(
        "specialist: video to text alone", jobs={"text_to_video": 0.0, "video_to_text": 1.0, "joint": 0.0}
    ),
    "generator": Arm(
        "specialist: text to video alone, no text stream",
        jobs={"text_to_video": 1.0, "video_to_text": 0.0, "joint": 0.0},
        empty_text=1.0,
    ),
}


def run_arm(name: str, seed: int, folder: Path, clips: int) -> dict[str, Any]:
    """Train and measure one arm with one seed."""
    arm, work = ARMS[name], folder / "ablations" / f"{name.replace(' ', '_')}_{seed}"
    shutil.rmtree(work, ignore_errors=True)
    data = Shards(folder / "cache", in_memory=True)
    file = folder / "start.safetensors" if arm.start == "start" else folder / arm.start / "model.safetensors"
    seconds, fresh = 0.0, "fresh"
    for stage, share in zip(("recall", "refine"), arm.shares, strict=True):
        if not share:
            continue
        config = from_dict(
            TrainConfig,
            {
                "stage": stage,
                "model": str(file),
                "text_half": fresh,
                "embedding_std": 1.0,
                "data": "the embedded model's",
                "out": str(work / stage),
                "seed": seed,
                "steps": round(STEPS * share),
                "batch": BATCH,
                "detail_share": 0.5 if stage == "recall" else 0.8,
                "empty_text": arm.empty_text,
                "precision": "bf16",
                "device": "cpu",
                "jobs": arm.jobs,
                "dropout": arm.dropout,
                "video_times": {"kind": "logit_normal", "mean": 0.4, "uniform_share": 0.3},
                "loss": {"text": 0.5},
                "optimizer": {"kind": "muon", "rate": 1e-3, "muon_rate": 0.01, "warmup": 50, "ema": 0.99},
                "keep": {"checkpoint_every": 0, "log_every": 50, "checkpoints": 1},
                **(arm.more if fresh == "fresh" else {}),
            },
        )
        parts = Components(file, device="cpu", overrides={"text_states": "umT5"})
        model = starting_network(
            config, vocab_size=parts.tokenizer.size, attention=plain_attention, dtype=torch.float32
        )
        if arm.change is not None:
            arm.change(model)
        run = replace(parts.config.run, text_temperature=0.0)
        facts = CheckpointConfig(model.config, run, parts.config.card)
        started = time.perf_counter()
        outcome = Trainer(config, model, data, facts, make_accelerator(config), say=lambda _: None).run()
        seconds += time.perf_counter() - started
        assert outcome.file is not None
        file, fresh = outcome.file, "keep"
    exam = Exam(Pipeline(file, device="cpu"), clips=clips, quick=True)
    answers: dict[str, Any] = {"seed": seed, "says": arm.says, "seconds": round(seconds)}
    if name != "generator":
        answers["understanding"] = exam.video_to_text().to_json()
    if name != "captioner":
        answers["generation"] = exam.text_to_video(SAMPLER_STEPS, plain=name == "generator").to_json()
    if name not in ("generator", "captioner"):
        answers["joint"] = exam.joint(SAMPLER_STEPS)[0].to_json()
    shutil.rmtree(work)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--out", type=Path, default=NUMBERS, help="commands side by side may share it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(exist_ok=True)
    budget = {"steps": STEPS, "batch": BATCH, "clips": args.clips, "sampler_steps": SAMPLER_STEPS}
    budget["generator_sha256"] = digest(args.workdir / "generate" / "model.safetensors")
    known = json.loads(args.out.read_text("utf-8")) if args.out.exists() else budget
    if any(known.get(name) != value for name, value in budget.items()):
        parser.error(f"{args.out} has arms of another budget or generator: choose another --out, or remove it")
    for seed in args.seeds:
        for name in args.arms:
            known = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
            if str(seed) in known.get("arms", {}).get(name, {}):
                continue
            answers = run_arm(name, seed, args.workdir, args.clips)
            known = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
            known |= budget
            known.setdefault("arms", {}).setdefault(name, {})[str(seed)] = answers
            write_text(args.out, json.dumps(known, indent=1) + "\n")
            means = {key: value["mean"] for key, value in answers.items() if isinstance(value, dict)}
            print(f"{name} {seed}  {answers['seconds']} s  {means}", flush=True)


if __name__ == "__main__":
    main()
