"""What a trained model gets right on little worlds it has never seen; the numbers go into a JSON file.

    python benchmarks/quality.py MODEL.safetensors --name final [--clips 512] [--only understanding generation ...]

Questions: ``detector`` (does it read rendered and reconstructed clips right), ``vae`` (how well clips come back, in
dB), ``understanding`` (video to text),
``generation`` (text to video), ``plain`` (the same with an empty text stream: the generator alone), ``joint``,
``ranking``, ``steps`` (each job at 4 to 64 steps, in bfloat16), ``stable`` (captions that stop when their words stand
still), ``ending`` (captions read up to the first end token, and read on behind it as the release does).
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

from saved import read, save

from recipes.worlds.detector import read_world
from recipes.worlds.evaluation import Evaluator
from recipes.worlds.grammar import KINDS, World, read_caption
from recipes.worlds.vae_training import reconstruction
from uvg_core.config import END_OF_TEXT
from uvg_core.media.tokenizer import Tokenizer
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import GuidedDenoiser, Sampling, video_to_text

STEPS = (4, 8, 16, 32, 64)
STABLE = (2, 3, 5)
QUESTIONS = ("detector", "vae", "understanding", "generation", "plain", "joint", "ranking", "steps", "stable", "ending")
ENDING = ((4, 1.0), (16, 1.0), (16, 0.0))


def ask(evaluator: Evaluator, question: str) -> dict[str, Any]:
    """Answers of one question."""
    if question == "detector":
        return {
            "rendered": evaluator.score_clips(evaluator.pixels, evaluator.worlds).to_json(),
            "reconstructed": evaluator.score_clips(evaluator.decode(evaluator.latents), evaluator.worlds).to_json(),
        }
    if question == "vae":
        with evaluator.pipe.components.using("vae") as vae:
            found = reconstruction(
                vae, side=evaluator.run.height, frames=evaluator.run.frames, clips=len(evaluator.latents)
            )
        return {"whole": round(found.psnr, 2), "boxes": round(found.psnr_boxes, 2)}
    if question == "understanding":
        tally = evaluator.video_to_text()
        return {**tally.to_json(), "by_kind": by_kind(evaluator, [read_caption(text) for text in evaluator.captions])}
    if question == "generation":
        tally = evaluator.text_to_video()
        return {
            **tally.to_json(),
            "by_kind": by_kind(evaluator, [read_world(clip, evaluator.objects) for clip in evaluator.clips]),
        }
    if question == "plain":
        return evaluator.text_to_video(plain=True).to_json()
    if question == "joint":
        agreement, followed = evaluator.joint()
        return {"agreement": agreement.to_json(), "prompt": followed.to_json()}
    if question == "ranking":
        hits, clips = evaluator.ranking()
        return {"hits": hits, "trials": clips, "share": round(hits / clips, 4)}
    if question == "stable":
        return {str(wanted): stable(evaluator, wanted) for wanted in STABLE}
    if question == "ending":
        return {f"{steps} steps, temperature {heat:g}": ending(evaluator, steps, heat) for steps, heat in ENDING}
    answers: dict[str, Any] = {}
    jobs: dict[str, Callable[[int], Any]] = {
        "understanding": lambda steps: evaluator.video_to_text(steps).to_json(),
        "generation": lambda steps: evaluator.text_to_video(steps).to_json(),
        "joint": lambda steps: evaluator.joint(steps)[0].to_json(),
    }
    for name, job in jobs.items():
        answers[name] = {str(steps): job(steps) for steps in STEPS}
    return answers


def by_kind(evaluator: Evaluator, seen: Sequence[World | None]) -> dict[str, list[int]]:
    """Hits and trials of every kind; of one object alone, since two would have to be matched first."""
    found = {kind: [0, 0] for kind in KINDS} if evaluator.objects == 1 else {}
    for world, other in zip(evaluator.worlds, seen, strict=True):
        if found and world is not None:
            kind = world.shapes[0].kind
            found[kind][0] += other is not None and bool(other.shapes) and other.shapes[0].kind == kind
            found[kind][1] += 1
    return found


def stable(evaluator: Evaluator, wanted: int) -> dict[str, Any]:
    """Captions one by one, each stopped when ``wanted`` steps in a row draw the same words."""
    taken, texts = 0, []
    with evaluator.pipe.network() as model:
        for index in range(len(evaluator.latents)):
            steps: list[int] = []

            def count(step: int, _: object, steps: list[int] = steps) -> None:
                steps.append(step)

            ids = video_to_text(
                GuidedDenoiser(model),
                evaluator.latents[index : index + 1],
                Sampling(seed=index, stop_when_stable=wanted).resolved(evaluator.run, captions=True),
                callback=count,
            )
            taken += len(steps)
            texts.append(evaluator.pipe.tokenizer.text(ids[0]))
    return {"steps": taken / len(texts), "of": evaluator.run.text_steps, **evaluator.score_captions(texts).to_json()}


def ending(evaluator: Evaluator, steps: int, temperature: float) -> dict[str, Any]:
    """The same tokens read by both rules of ``RunConfig.end_of_text``, and how many captions the rule changes."""
    found: dict[str, Any] = {}
    said: dict[str, list[str]] = {}
    known = evaluator.pipe.tokenizer
    try:
        for rule in END_OF_TEXT:
            evaluator.pipe.tokenizer = Tokenizer(known.proto, replace(evaluator.run, end_of_text=rule))
            found[rule] = evaluator.video_to_text(steps, temperature=temperature).to_json()
            said[rule] = evaluator.captions
    finally:
        evaluator.pipe.tokenizer = known
    return {"differ": sum(a != b for a, b in zip(*said.values(), strict=True)), "of": len(evaluator.captions), **found}


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
            answer = ask(evaluator, question)
            known.setdefault(f"objects_{objects}", {})[question] = answer
            shown = {key: value for key, value in answer.items() if key in ("mean", "share")} or list(answer)
            print(f"{objects} object(s)  {question:14s} {shown}  {time.perf_counter() - started:.0f} s", flush=True)
            save(file, known)


if __name__ == "__main__":
    main()
