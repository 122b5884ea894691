"""``synthesise``: prompts give a data set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from ..media.video import write_video
from ..pipeline.pipeline import given
from ..progress import Bars
from ..sampling import BestOf, Sampling, Size
from ..synthesis import engine
from ..synthesis.captioner import make_captioner
from ..synthesis.chat import require_usable
from ..synthesis.settings import Chat, Synthesise, clip_settings, text_limits
from .common import VIDEO, Model, Video, steps_of, steps_on
from .flags import Only
from .output import complain, enlarged, say, show


def synthesise(
    own: Synthesise,
    captions: Chat,
    model: Model,
    sampling: Annotated[Sampling, Only(*VIDEO)],
    video: Video,
    size: Size,
    best: Annotated[BestOf, Only("best_of")],
    shown: Bars,
) -> int:
    """Build a data set from prompts: clips, and detailed captions written by a language model."""
    require_usable(captions)
    prompts, doubles = engine.read_prompts(own.prompts)
    jobs = engine.plan(prompts, own.clips_per_prompt, sampling.seed)
    if own.dry_run:
        show(engine.survey(jobs, own.out))
        return 0
    pipe = model.pipeline(shown, video.null_embedding)
    fps, watch = given(video.fps, pipe.config.run.fps), steps_of(pipe, best, partial(steps_on, shown), "generating")

    def note(text: str) -> None:
        shown.close()
        say(text)

    def count(text: str) -> int:
        return len(pipe.tokenizer.ids(text))

    def make(job: engine.ClipJob, path: Path) -> dict[str, Any]:
        seeded = replace(sampling, seed=job.seed)
        how: dict[str, Any] = {"negative": video.negative, "size": size, "sampling": seeded}
        drawn = pipe.draw(job.prompt, best_of=best.best_of, callback=watch, **how)
        write_video(path, enlarged(pipe.decoded(drawn)[0], video.scale), fps)
        if drawn.score is None:
            return {}
        note(f"     seed {drawn.seed} of {best.best_of} draws fits best: {drawn.score:.3g} {pipe.score_unit}")
        return {"drawn": drawn.seed, "score": round(drawn.score, 4)}

    limits = text_limits(own, captions, pipe)
    pipe.noise(size)  # sizes that do not fit are known now
    captioner = make_captioner(captions, own.out, count, limits.detail, note)
    if captioner is None:
        note("no --endpoint: clips and prompts are written, detailed captions are not")
    if doubles:
        note(f"{own.prompts}: {doubles} prompts are repeated; each is used once")
    null = {} if video.null_embedding is None else {"null_embedding": video.null_embedding.name}
    flags = {"dtype": model.dtype, "negative": video.negative, **null, "fps": fps, "scale": video.scale}
    flags |= {"best_of": best.best_of} if best.best_of > 1 else {}
    facts = clip_settings(pipe, model.places.wan, sampling, size, **flags)
    generator = engine.Generator(make, facts, count, limits.prompt)
    try:
        report = engine.synthesise(jobs, own.out, generator, captioner, anyway=own.anyway, note=note)
    finally:
        if captioner is not None:
            captioner.client.close()
    shown.close()
    show(str(report))
    if report.stopped:
        complain(f"{report.stopped}\nFinished clips are kept. Run the same command again to continue")
    return int(report.failed)
