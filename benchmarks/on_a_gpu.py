"""Everything that only a GPU can show, in one run of under 8 minutes on one card.

    python benchmarks/on_a_gpu.py [--out FOLDER] [--minutes 8] [--only NAME ...]
    python benchmarks/on_a_gpu.py --rehearse       every line of it on the CPU and on a fake card, at small sizes

Each claim has a limit and gets a verdict: pass, fail, or not run with the reason. Weights are random but for the
embedded model's, so results are noise; memory, time and counts are real. Claims about ComfyUI need one where the tests
find it. Writes on_a_gpu.json and on_a_gpu.md into FOLDER (default: benchmarks/numbers); exit code 1 if a claim fails.

A fake card computes nothing: shapes, lifetimes, waits and launches are real, so it can rehearse what is counted, not
what is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import fake_card
import torch
from gpu_claims import Claim, Verdict, claims
from gpu_rig import REHEARSAL, RELEASED, NotRun, Rig
from saved import NUMBERS, save

from uvg_core.errors import UniViGUError
from uvg_core.io import write_text


def tried(claim: Claim, rig: Rig, seconds_left: float) -> Verdict:
    """Whatever happens in one claim is its outcome; the next one is tried all the same."""
    if seconds_left < claim.seconds and rig.kind == "cuda":
        return Verdict(claim, rig.kind, "not run", why=f"out of time: takes about {claim.seconds:.0f} s")
    started = time.monotonic()
    try:
        value = float(claim.measure(rig))
        outcome = claim.outcome(rig.kind, value)
    except NotRun as reason:
        outcome = Verdict(claim, rig.kind, "not run", why=str(reason))
    except (RuntimeError, UniViGUError, OSError, AssertionError) as error:
        if os.environ.get("UVG_DEBUG"):
            raise
        said = next(iter(str(error).strip().splitlines()), "")[:160]
        outcome = Verdict(claim, rig.kind, "fail", why=f"{type(error).__name__}: {said}")
    rig.free()
    return replace(outcome, seconds=time.monotonic() - started)


def machine(kind: str) -> str:
    name = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    cuda = f", CUDA {torch.version.cuda}" if kind == "cuda" else ""
    return f"{name}; torch {torch.__version__}{cuda}; Python {sys.version.split()[0]}"


def page(outcomes: list[Verdict], where: str, rehearsed: bool) -> str:
    counts = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in ("pass", "fail", "not run")}
    title = "Rehearsal: no card was used" if rehearsed else "Measured on a card"
    note = "Sizes are small and every number is of the rehearsal.\n\n" if rehearsed else ""
    head = "| claim | on | limit | measured | verdict | s |\n| --- | --- | --- | --- | --- | ---: |"
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"# {title}\n\n{where}. {told}.\n\n{note}{head}\n" + "\n".join(one.row() for one in outcomes) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=NUMBERS)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="claims whose names contain one of these")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep what a fake card counts for docs/costs.md")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --rehearse runs everything on the CPU and on a fake card")
    chosen = [c for c in claims() if not args.only or any(part in c.name for part in args.only)]
    deadline = time.monotonic() + 60 * args.minutes
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    outcomes: list[Verdict] = []

    def run(rig: Rig) -> None:
        for claim in chosen:
            if rig.kind in claim.kinds:
                outcomes.append(tried(claim, rig, deadline - time.monotonic()))
                print(outcomes[-1].row(), flush=True)
        rig.close()

    if args.rehearse:
        run(Rig("cpu", REHEARSAL))
        reason = fake_card.missing()
        if reason:
            print(f"not on a fake card: {reason}", file=sys.stderr)
        else:
            with fake_card.fake_card() as card:
                run(Rig("fake", RELEASED, card=card))
    else:
        run(Rig("cuda", RELEASED))
    where = machine("cpu" if args.rehearse else "cuda")
    told = [
        {"claim": one.claim.name, "on": one.kind, "limit": [one.claim.holds, one.claim.limit, one.claim.unit],
         "value": one.value, "verdict": one.verdict, "why": one.why, "seconds": round(one.seconds, 1)}
        for one in outcomes
    ]  # fmt: skip
    if args.save:
        save("counted", [one for one in told if one["on"] == "fake" and one["value"] is not None])
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": where, "rehearsal": args.rehearse, "outcomes": told}
    write_text(args.out / "on_a_gpu.json", json.dumps(found, indent=1) + "\n")
    write_text(args.out / "on_a_gpu.md", page(outcomes, where, args.rehearse))
    return int(any(one.verdict == "fail" for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
