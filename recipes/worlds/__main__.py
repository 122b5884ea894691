"""Build the embedded model.

    python -m recipes.worlds WORKDIR [--only PART] [--out models/uvg_tiny.safetensors [--numbers JSON]]

Every part is kept in WORKDIR: a part that is there is used, one that was interrupted goes on. The finished model is
written in float16; ``--numbers`` puts what ``evaluate worlds`` measured into its metadata.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from uvg_core.io import MEGABYTE, read_text

from .recipe import RUNS, export, make_start, measure_vae, run_one
from .tables import quality_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.worlds", description="Build the embedded model.")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--only", choices=("start", *RUNS), help="stop after this part")
    parser.add_argument("--out", type=Path, help="write the finished model here, in float16")
    parser.add_argument("--numbers", type=Path, help="evaluate.json of evaluate worlds, for the metadata of --out")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    say = partial(print, flush=True)

    model = make_start(args.workdir, say)
    for name in RUNS if args.only != "start" else ():
        model = run_one(name, args.workdir, model, say)
        say(f"{name}: {model}")
        if args.only == name:
            return
    if args.out is None or args.only == "start":
        return
    if args.numbers is None:
        say("no --numbers: the file will not say how good the model is")
        measured = measure_vae(args.workdir, say)
    else:
        measured = quality_of(json.loads(read_text(args.numbers, most=256 * MEGABYTE, exact=True))["rows"])
    export(model, args.out, measured)
    say(f"written: {args.out}")


if __name__ == "__main__":
    main()
