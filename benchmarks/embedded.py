"""How good the embedded model is: attributes that are right, over fixed seeds, on clips it has never seen.

python benchmarks/embedded.py [--clips 96]
"""

from __future__ import annotations

import argparse
import time

import torch

from uvg_core import joint, text_to_video, video_to_text
from uvg_core.pipeline import Pipeline
from uvg_core.training.worlds import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MOTIONS,
    SIZES,
    World,
    all_worlds,
    read_colours,
    render,
)

ATTRIBUTES = {"size": SIZES, "colour": COLOURS, "kind": KINDS, "motion": MOTIONS, "background": BACKGROUNDS}


def said(text: str) -> dict[str, str]:
    """What a caption says about each attribute."""
    words = text.split()
    return {name: next((word for word in words if word in table), "") for name, table in ATTRIBUTES.items()}


def share(hits: list[bool]) -> str:
    return f"{100 * sum(hits) / len(hits):5.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=96)
    count = parser.parse_args().clips
    pipe = Pipeline()
    run, g = pipe.config.run, torch.Generator().manual_seed(2026)
    everything = list(all_worlds())
    worlds: list[World] = [everything[i] for i in torch.randint(len(everything), (count,), generator=g).tolist()]

    started = time.perf_counter()
    latents = torch.cat([pipe.encode_clip(render(world, generator=g)) for world in worlds])
    with pipe.network() as network:
        ids = video_to_text(network, video=latents, length=run.text_length, steps=run.text_steps)
    texts = [pipe.tokenizer.text(row) for row in ids]
    print(f"video to text, {count} clips at places not trained on, {run.text_steps} steps")
    for name in ATTRIBUTES:
        print(f"  {name:12s} {share([said(t)[name] == getattr(w, name) for t, w in zip(texts, worlds, strict=True)])}")
    print(f"  exact        {share([t == w.caption for t, w in zip(texts, worlds, strict=True)])}")

    print(f"the same one by one, stopped when so many steps in a row draw the same words, of {run.text_steps}")
    for stable in (0, 2, 3, 5):
        taken, right = 0, []
        with pipe.network() as network:
            for seed, (latent, world) in enumerate(zip(latents, worlds, strict=True)):
                seen_steps: list[int] = []
                ids = video_to_text(
                    network,
                    video=latent[None],
                    length=run.text_length,
                    steps=run.text_steps,
                    seed=seed,
                    stop_when_stable=stable,
                    callback=lambda step, state, seen=seen_steps: seen.append(step),
                )
                taken += len(seen_steps)
                right.append(pipe.tokenizer.text(ids[0]) == world.caption)
        print(f"  {stable or 'never':5}        exact {share(right)} in {taken / count:4.1f} steps")

    noise = torch.cat([pipe.noise(seed=seed) for seed in range(count)])
    context, null = pipe.conditions([world.caption for world in worlds]), pipe.conditions([""])
    tokens, mask = pipe.tokenizer.stream([world.caption for world in worlds], run.text_length)
    settings = {"null_context": null, "steps": run.steps, "shift": run.shift, "guidance_scale": run.guidance_scale}
    for label, text, keep in (("text to video", tokens, mask), ("the same, empty text stream", None, None)):
        with pipe.network() as network:
            made = text_to_video(network, noise=noise, text=text, text_mask=keep, context=context, **settings)
        seen = [read_colours(clip) for clip in pipe.decode_clips(made.split(1))]
        print(f"{label}, {count} clips, {run.steps} steps, guidance {run.guidance_scale:g}")
        print(f"  colour       {share([s[0] == w.colour for s, w in zip(seen, worlds, strict=True)])}")
        print(f"  background   {share([s[1] == w.background for s, w in zip(seen, worlds, strict=True)])}")

    brief = pipe.conditions([world.brief for world in worlds])
    with pipe.network() as network:
        both = joint(network, noise=noise, context=brief, length=run.text_length, **settings)
    seen = [read_colours(clip) for clip in pipe.decode_clips(both.video.split(1))]
    texts = [pipe.tokenizer.text(row) for row in both.text]
    print(f"joint from a brief prompt, {count} clips: what is written is what is shown")
    print(f"  colour       {share([said(t)['colour'] == s[0] for t, s in zip(texts, seen, strict=True)])}")
    print(f"  background   {share([said(t)['background'] == s[1] for t, s in zip(texts, seen, strict=True)])}")
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
