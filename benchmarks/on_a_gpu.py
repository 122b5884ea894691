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
from pathlib import Path
from typing import Any

import torch
from gpu_claims import Claim, claims
from gpu_rig import REHEARSAL, RELEASED, NotRun, Rig
from measuring import NUMBERS, save

from uvg_core.errors import UniViGUError


def tried(claim: Claim, rig: Rig, deadline: float) -> dict[str, Any]:
    """Whatever happens in one claim is its verdict; the next one is tried all the same."""
    started, value = time.monotonic(), None
    verdict, why = "not run", f"out of time: takes about {claim.seconds:.0f} s"
    if rig.kind != "cuda" or started + claim.seconds < deadline:
        try:
            value = float(claim.measure(rig))
            verdict, why = "pass" if claim.accepts(value) else "fail", ""
            if claim.sized and rig.kind == "cpu":
                verdict, why, value = "not run", f"rehearsed at a small size: {value:.4g} {claim.unit}", None
        except NotRun as reason:
            why = str(reason)
        except (RuntimeError, UniViGUError, OSError, AssertionError) as error:
            if os.environ.get("UVG_DEBUG"):
                raise
            first_line, _, _ = str(error).strip().partition("\n")
            verdict, why = "fail", f"{type(error).__name__}: {first_line[:160]}"
    torch.cuda.empty_cache()
    return {
        "claim": claim.name,
        "on": rig.kind,
        "limit": [claim.holds, claim.limit, claim.unit],
        "value": value,
        "verdict": verdict,
        "why": why,
        "seconds": round(time.monotonic() - started, 1),
    }


def row(outcome: dict[str, Any]) -> str:
    holds, limit, unit = outcome["limit"]
    value = outcome["why"] if outcome["value"] is None else f"{outcome['value']:.4g} {unit}".strip()
    limit = f"{holds} {limit:g} {unit}".strip()
    return "| {claim} | {on} | {} | {} | {verdict} | {seconds:.0f} |".format(limit, value, **outcome)


def machine(kind: str) -> str:
    name = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    cuda = f", CUDA {torch.version.cuda}" if kind == "cuda" else ""
    return f"{name}; torch {torch.__version__}{cuda}; Python {sys.version.split()[0]}"


def page(outcomes: list[dict[str, Any]], where: str, rehearsed: bool) -> str:
    verdicts = [one["verdict"] for one in outcomes]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("pass", "fail", "not run"))
    title = "Rehearsal: no card was used" if rehearsed else "Measured on a card"
    note = "Sizes are small and every number is of the rehearsal.\n\n" if rehearsed else ""
    head = "| claim | on | limit | measured | verdict | s |\n| --- | --- | --- | --- | --- | ---: |"
    return f"# {title}\n\n{where}. {counts}.\n\n{note}{head}\n" + "\n".join(map(row, outcomes)) + "\n"


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
    outcomes: list[dict[str, Any]] = []

    def run(rig: Rig) -> None:
        for claim in chosen:
            if claim.counted or rig.kind != "fake":
                outcomes.append(tried(claim, rig, deadline))
                print(row(outcomes[-1]), flush=True)
        rig.clear()

    if not args.rehearse:
        run(Rig("cuda", RELEASED))
    else:
        from fake_card import fake_card, missing

        run(Rig("cpu", REHEARSAL))
        reason = missing()
        if reason:
            print(f"not on a fake card: {reason}", file=sys.stderr)
        else:
            with fake_card() as card:
                run(Rig("fake", RELEASED, card=card))
    where = machine("cpu" if args.rehearse else "cuda")
    if args.save:
        save("counted", [one for one in outcomes if one["on"] == "fake" and one["value"] is not None])
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": where, "rehearsal": args.rehearse, "outcomes": outcomes}
    (args.out / "on_a_gpu.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (args.out / "on_a_gpu.md").write_text(page(outcomes, where, args.rehearse), "utf-8")
    return int(any(one["verdict"] == "fail" for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
