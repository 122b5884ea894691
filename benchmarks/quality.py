"""What a trained model gets right on little worlds it has never seen; the numbers go into a JSON file.

    python benchmarks/quality.py MODEL.safetensors --name final [--clips 512] [--only understanding generation ...]

Questions: ``detector`` (does it read rendered and reconstructed clips right), ``vae`` (how well clips come back, in
dB), ``understanding`` (video to text), ``generation`` (text to video), ``plain`` (the same with an empty text stream:
the generator alone), ``joint``, ``ranking``, ``steps`` (each job at 4 to 64 steps, in bfloat16), ``stable`` (captions
that stop when their words stand still), ``sure`` (captions that stop when every word is likely enough).
Seeds are fixed: the same machine gives the same numbers again.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import read, save

from recipes.worlds.detector import read_world
from recipes.worlds.evaluation import Evaluator
from recipes.worlds.grammar import KINDS, World, read_caption
from recipes.worlds.vae_training import reconstruction
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import GuidedDenoiser, Sampling, video_to_text

STEPS = (4, 8, 16, 32, 64)
STABLE = (2, 3, 5)
SURE = (0.5, 0.7, 0.9)


def detector(evaluator: Evaluator) -> dict[str, Any]:
    clips = {"rendered": evaluator.pixels, "reconstructed": evaluator.decode(evaluator.latents)}
    return {name: evaluator.score_clips(pixels, evaluator.worlds).to_json() for name, pixels in clips.items()}


def vae(evaluator: Evaluator) -> dict[str, Any]:
    run, clips = evaluator.run, len(evaluator.latents)
    with evaluator.pipe.components.using("vae") as codec:
        found = reconstruction(codec, side=run.height, frames=run.frames, clips=clips)
    return {"whole": round(found.psnr, 2), "boxes": round(found.psnr_boxes, 2)}


def understanding(evaluator: Evaluator) -> dict[str, Any]:
    found = evaluator.video_to_text().to_json()
    return {**found, "by_kind": by_kind(evaluator, [read_caption(text) for text in evaluator.captions])}


def generation(evaluator: Evaluator) -> dict[str, Any]:
    found = evaluator.text_to_video().to_json()
    return {**found, "by_kind": by_kind(evaluator, [read_world(clip, evaluator.objects) for clip in evaluator.clips])}


def plain(evaluator: Evaluator) -> dict[str, Any]:
    return evaluator.text_to_video(plain=True).to_json()


def joint(evaluator: Evaluator) -> dict[str, Any]:
    agreement, followed = evaluator.joint()
    return {"agreement": agreement.to_json(), "prompt": followed.to_json()}


def ranking(evaluator: Evaluator) -> dict[str, Any]:
    hits, clips = evaluator.ranking()
    return {"hits": hits, "trials": clips, "share": round(hits / clips, 4)}


def by_steps(evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Each job at several numbers of steps."""
    jobs: dict[str, Callable[[int], Any]] = {
        "understanding": lambda steps: evaluator.video_to_text(steps).to_json(),
        "generation": lambda steps: evaluator.text_to_video(steps).to_json(),
        "joint": lambda steps: evaluator.joint(steps)[0].to_json(),
    }
    return {name: {str(steps): job(steps) for steps in STEPS} for name, job in jobs.items()}


def by_kind(evaluator: Evaluator, seen: Sequence[World | None]) -> dict[str, list[int]]:
    """Hits and trials of every kind; of one object alone, since two would have to be matched first."""
    found = {kind: [0, 0] for kind in KINDS} if evaluator.objects == 1 else {}
    for world, other in zip(evaluator.worlds, seen, strict=True):
        if found and world is not None:
            kind = world.shapes[0].kind
            found[kind][0] += other is not None and bool(other.shapes) and other.shapes[0].kind == kind
            found[kind][1] += 1
    return found


def stable(evaluator: Evaluator) -> dict[str, Any]:
    return {str(wanted): stopped(evaluator, stop_when_stable=wanted) for wanted in STABLE}


def sure(evaluator: Evaluator) -> dict[str, Any]:
    return {str(wanted): stopped(evaluator, stop_when_sure=wanted) for wanted in SURE}


def stopped(evaluator: Evaluator, **rule: Any) -> dict[str, Any]:
    """Captions one by one, each stopped by a rule of ``Sampling``."""
    steps: list[int] = []
    texts = []
    with evaluator.pipe.network() as model:
        for index, latent in enumerate(evaluator.latents.split(1)):
            settings = Sampling(seed=index, **rule).resolved(evaluator.run, captions=True)
            ids = video_to_text(GuidedDenoiser(model), latent, settings, callback=lambda step, _: steps.append(step))
            texts.append(evaluator.pipe.tokenizer.text(ids[0]))
    found = evaluator.score_captions(texts).to_json()
    return {"steps": len(steps) / len(texts), "of": evaluator.run.text_steps, **found}


QUESTIONS: dict[str, Callable[[Evaluator], dict[str, Any]]] = {
    "detector": detector,
    "vae": vae,
    "understanding": understanding,
    "generation": generation,
    "plain": plain,
    "joint": joint,
    "ranking": ranking,
    "steps": by_steps,
    "stable": stable,
    "sure": sure,
}


def digest(model: Path) -> str:
    """SHA-256 of a safetensors file without its header: what the metadata say does not matter."""
    data = model.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", required=True, help="the numbers go to benchmarks/numbers/quality_NAME.json")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 2], choices=(1, 2))
    parser.add_argument("--guidance", type=float, help="in place of the checkpoint's, to compare two of them")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    args = parser.parse_args()
    file = f"quality_{args.name}"
    known: dict[str, Any] = read(file)
    of = {"model": args.model.name, "weights_sha256": digest(args.model), "clips": args.clips}
    of |= {} if args.guidance is None else {"guidance": args.guidance}
    for name, value in of.items():
        if name != "model" and known.setdefault(name, value) != value:
            has = f"{file}.json has numbers of another {name}, {known[name]}"
            parser.error(f"{has}: choose another --name, or remove it")
    known |= of
    pipe = Pipeline(args.model, device="cpu")
    for objects in args.objects:
        evaluator = Evaluator(pipe, clips=args.clips, objects=objects)
        evaluator.run = replace(evaluator.run, guidance_scale=args.guidance or evaluator.run.guidance_scale)
        for question in args.only:
            if question in ("vae", "steps") and objects == 2:
                continue
            started = time.perf_counter()
            evaluator.quick = question == "steps"
            answer = QUESTIONS[question](evaluator)
            known.setdefault(f"objects_{objects}", {})[question] = answer
            shown = {key: value for key, value in answer.items() if key in ("mean", "share")} or list(answer)
            print(f"{objects} object(s)  {question:14s} {shown}  {time.perf_counter() - started:.0f} s", flush=True)
            save(file, known)


if __name__ == "__main__":
    main()
