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
from recipes.worlds.evaluation import Exam, read_caption
from recipes.worlds.vae import reconstruction
from recipes.worlds.world import KINDS, World
from uvg_core.config import END_OF_TEXT
from uvg_core.media.text import Tokenizer
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import video_to_text

STEPS = (4, 8, 16, 32, 64)
STABLE = (2, 3, 5)
QUESTIONS = ("detector", "vae", "understanding", "generation", "plain", "joint", "ranking", "steps", "stable", "ending")
ENDING = ((4, 1.0), (16, 1.0), (16, 0.0))


def ask(exam: Exam, question: str, ranked: int) -> dict[str, Any]:
    """Answers of one question."""
    if question == "detector":
        return {
            "rendered": exam.read(exam.pixels, exam.worlds).to_json(),
            "reconstructed": exam.read(exam.decode(exam.latents), exam.worlds).to_json(),
        }
    if question == "vae":
        with exam.pipe.components.using("vae") as vae:
            found = reconstruction(vae, side=exam.run.height, frames=exam.run.frames, clips=len(exam.latents))
        return {"whole": round(found.psnr, 2), "boxes": round(found.psnr_boxes, 2)}
    if question == "understanding":
        tally = exam.video_to_text()
        return {**tally.to_json(), "by_kind": by_kind(exam, [read_caption(text) for text in exam.captions])}
    if question == "generation":
        tally = exam.text_to_video()
        return {**tally.to_json(), "by_kind": by_kind(exam, [read_world(clip, exam.objects) for clip in exam.clips])}
    if question == "plain":
        return exam.text_to_video(plain=True).to_json()
    if question == "joint":
        agreement, followed = exam.joint()
        return {"agreement": agreement.to_json(), "prompt": followed.to_json()}
    if question == "ranking":
        hits, clips = exam.ranking(clips=ranked)
        return {"hits": hits, "trials": clips, "share": round(hits / clips, 4)}
    if question == "stable":
        return {str(wanted): stable(exam, wanted) for wanted in STABLE}
    if question == "ending":
        return {f"{steps} steps, temperature {heat:g}": ending(exam, steps, heat) for steps, heat in ENDING}
    answers: dict[str, Any] = {}
    jobs: dict[str, Callable[[int], Any]] = {
        "understanding": lambda steps: exam.video_to_text(steps).to_json(),
        "generation": lambda steps: exam.text_to_video(steps).to_json(),
        "joint": lambda steps: exam.joint(steps)[0].to_json(),
    }
    for name, job in jobs.items():
        answers[name] = {str(steps): job(steps) for steps in STEPS}
    return answers


def by_kind(exam: Exam, seen: Sequence[World | None]) -> dict[str, list[int]]:
    """Hits and trials of every kind; of one object alone, since two would have to be matched first."""
    found = {kind: [0, 0] for kind in KINDS} if exam.objects == 1 else {}
    for world, other in zip(exam.worlds, seen, strict=True):
        if found and world is not None:
            kind = world.things[0].kind
            found[kind][0] += other is not None and bool(other.things) and other.things[0].kind == kind
            found[kind][1] += 1
    return found


def stable(exam: Exam, wanted: int) -> dict[str, Any]:
    """Captions one by one, each stopped when ``wanted`` steps in a row draw the same words."""
    taken, texts = 0, []
    with exam.pipe.network() as model:
        for index in range(len(exam.latents)):
            steps: list[int] = []
            ids = video_to_text(
                model,
                video=exam.latents[index : index + 1],
                length=exam.run.text_length,
                steps=exam.run.text_steps,
                seed=index,
                temperature=exam.run.text_temperature,
                stop_when_stable=wanted,
                callback=lambda step, _, steps=steps: steps.append(step),
            )
            taken += len(steps)
            texts.append(exam.pipe.tokenizer.text(ids[0]))
    return {"steps": taken / len(texts), "of": exam.run.text_steps, **exam.told(texts).to_json()}


def ending(exam: Exam, steps: int, temperature: float) -> dict[str, Any]:
    """The same tokens read by both rules of ``RunConfig.end_of_text``, and how many captions the rule changes."""
    found: dict[str, Any] = {}
    said: dict[str, list[str]] = {}
    known = exam.pipe.tokenizer
    try:
        for rule in END_OF_TEXT:
            exam.pipe.tokenizer = Tokenizer(known.proto, replace(exam.run, end_of_text=rule))
            found[rule] = exam.video_to_text(steps, temperature=temperature).to_json()
            said[rule] = exam.captions
    finally:
        exam.pipe.tokenizer = known
    return {"differ": sum(a != b for a, b in zip(*said.values(), strict=True)), "of": len(exam.captions), **found}


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
        exam = Exam(pipe, clips=args.clips, objects=objects)
        exam.run = replace(exam.run, guidance_scale=args.guidance or exam.run.guidance_scale)
        for question in args.only:
            if question in ("vae", "steps") and objects == 2:
                continue
            started = time.perf_counter()
            exam.quick = question == "steps"
            answer = ask(exam, question, args.clips)
            known.setdefault(f"objects_{objects}", {})[question] = answer
            shown = {key: value for key, value in answer.items() if key in ("mean", "share")} or list(answer)
            print(f"{objects} object(s)  {question:14s} {shown}  {time.perf_counter() - started:.0f} s", flush=True)
            save(file, known)


if __name__ == "__main__":
    main()
