"""What ``test_streams`` asks: latents of two streams on core's samplers (embedding flow), and every sampler on t2v."""

from __future__ import annotations

import itertools
from typing import Any

import comfy.nested_tensor
import comfy.samplers
import torch
from check_made import (
    bridge,
    checkpoint,
    conditioning,
    core,
    distance,
    empty,
    joint,
    message,
    random_network,
    run,
    sampled,
)
from worker import node_class, pack_module

LENGTH = 5


def embedding_model() -> Any:
    path = checkpoint("embedding", torch.float32, {"text_length": LENGTH}, text_flow="embedding")
    return bridge.with_shift(bridge.load_network(path, "default", None), 3.0)


def nested_latent(model: Any, batch: int = 1) -> dict[str, Any]:
    return run("UniViGUEmptyLatent", model=model, width=48, height=32, frames=5, text_length=0, batch_size=batch)[0]


def shapes(model: Any, latent: dict[str, Any]) -> list[list[int]]:
    return [list(part.shape) for part in bridge.streams_of(latent)]


def empty_latents() -> dict[str, Any]:
    discrete = bridge.load_network(checkpoint("discrete", torch.float32), "default", None)
    model = embedding_model()
    return {"discrete": shapes(discrete, nested_latent(discrete)), "embedding": shapes(model, nested_latent(model, 2))}


def stock_sampler_is_our_loop() -> dict[str, float]:
    """The stock KSampler on a nested latent against uvg_core's own joint run, from the same noise."""
    model = embedding_model()
    latent = nested_latent(model)
    noise = bridge.prepare_noise(latent, 3)
    positive, negative = conditioning(2), conditioning(3)
    sigmas = pack_module("uvg_core.flow.schedule").video_sigmas(4, 3.0)
    conditions, settings = bridge.Conditions(positive, negative), core.Sampling(steps=4, shift=3.0)
    out = bridge.sample_with_core(model, latent, conditions, settings, bridge.Core(), 3)
    video, text = out.unbind()
    network = random_network(text_flow="embedding")
    x, z = noise.unbind()
    z = z.transpose(1, 2)
    for here, there in itertools.pairwise(sigmas.tolist()):
        time = torch.full((1,), 1000 * here)
        velocity, text_velocity = network(x, z, time, time, positive[0][0])
        x, z = x + velocity * (there - here), z + text_velocity * (there - here)
    x = model.model.process_latent_out(x)
    return {"video": distance(video, x), "text": distance(text.transpose(1, 2), z)}


def every_sampler() -> dict[str, Any]:
    """All of core's samplers on a nested latent, all schedulers with one of them, and both on text-to-video."""
    nested_model, plain = embedding_model(), bridge.load_network(checkpoint("discrete", torch.float32), "default", None)
    latent = nested_latent(nested_model)
    positive, negative = conditioning(2, tokens=[3, 4, 1]), conditioning(3)
    problems: dict[str, str] = {}
    seen = 0
    names = [(sampler, "simple") for sampler in comfy.samplers.SAMPLER_NAMES]
    names += [("euler", scheduler) for scheduler in comfy.samplers.SCHEDULER_NAMES]
    for (sampler, scheduler), (kind, model, start) in itertools.product(
        names, (("nested", nested_model, latent), ("video", plain, empty()))
    ):
        seen += 1
        try:
            out = sampled(model, positive, negative, start, sampler_name=sampler, scheduler=scheduler, steps=5)
            parts = bridge.streams_of({"samples": out})
            if [list(p.shape) for p in parts] != shapes(model, start):
                problems[f"{kind} {sampler} {scheduler}"] = f"shapes {[list(p.shape) for p in parts]}"
            if not all(bool(p.isfinite().all()) for p in parts):
                problems[f"{kind} {sampler} {scheduler}"] = "not finite"
        except Exception as error:
            problems[f"{kind} {sampler} {scheduler}"] = f"{type(error).__name__}: {error}"
    return {"runs": seen, "problems": problems}


def added_later() -> list[list[str]]:
    """What Uni-Flow Sampler offers beyond before, once another pack has added to core's samplers and schedulers."""

    def offered() -> list[list[str]]:
        inputs = node_class("UniFlowSampler").INPUT_TYPES()["required"]
        return [list(inputs[name][1]["options"]) for name in ("sampler", "scheduler")]

    lists, before = (comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_NAMES), offered()
    try:
        for names in lists:
            names.append("of another pack")
        return [[name for name in new if name not in old] for new, old in zip(offered(), before, strict=True)]
    finally:
        for names in lists:
            names.remove("of another pack")


def masks() -> dict[str, Any]:
    """A stream that a mask holds clean: what is held does not move, and its clock stands at 0."""
    model = embedding_model()
    latent = nested_latent(model)
    video = bridge.streams_of(latent)[0]
    video = torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    as_content = pack_module("uvg_core.sampling.start").as_text_content
    words = as_content(model.model.diffusion_model, torch.tensor([[3, 7, 30, 1, 0]])).transpose(1, 2).float()
    full = {"samples": bridge.nested(video, words)}
    clocks: list[list[float]] = []

    def watch(executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        clocks.append([float(t.flatten()[0]) for t in timestep])
        return executor(x, timestep, *args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key("diffusion_model", "watch", watch)
    found: dict[str, Any] = {}
    holds = {"video": (torch.zeros(1, 1, 2, 4, 6), torch.ones(1, 1, LENGTH)),
             "text": (torch.ones(1, 1, 2, 4, 6), torch.zeros(1, 1, LENGTH))}  # fmt: skip
    for name, mask in holds.items():
        clocks.clear()
        held = {**full, "noise_mask": comfy.nested_tensor.NestedTensor(mask)}
        (split, spoken) = run(
            "UniViGUSplitLatent",
            model=model,
            latent={"samples": sampled(watched, conditioning(2), conditioning(3), held)},
        )
        found[name] = {
            "video": distance(split["samples"], video),
            "tokens": spoken.tokens.tolist(),
            "clocks": [min(c) for c in zip(*clocks, strict=True)] + [max(c) for c in zip(*clocks, strict=True)],
        }
    return found


def held_parts() -> dict[str, Any]:
    """A first frame that a mask holds, on the stock sampler: uvg_core's own text to video, and what the network sees
    there at the first step, by how the checkpoint was trained, with one stream and with two."""
    clean = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    free = torch.ones(1, 1, 2, 4, 6)
    free[:, :, 0] = 0
    positive, negative, found = conditioning(2, tokens=[3, 4, 1]), conditioning(3), dict[str, Any]()
    for held, flow in itertools.product(("noised", "clean"), ("discrete", "embedding")):
        path = checkpoint(
            f"held_{held}_{flow}", torch.float32, {"text_length": LENGTH}, held_parts=held, text_flow=flow
        )
        model = bridge.with_shift(bridge.load_network(path, "default", None), 3.0)
        seen: list[torch.Tensor] = []

        def watch(executor: Any, x: Any, *args: Any, seen: list[torch.Tensor] = seen, **kwargs: Any) -> Any:
            seen.append((x if isinstance(x, torch.Tensor) else x[0])[:1, :, 0].clone())
            return executor(x, *args, **kwargs)

        watched = model.clone()
        watched.add_wrapper_with_key("diffusion_model", "watch", watch)
        latent: dict[str, Any] = {"samples": clean, "noise_mask": free}
        if flow == "embedding":
            latent["samples"] = bridge.nested(clean, bridge.streams_of(nested_latent(model))[1])
        noise = bridge.streams_of({"samples": bridge.prepare_noise(latent, 3)})[0]
        settings = core.Sampling(steps=4, shift=3.0, guidance_scale=4.0)
        conditions = bridge.Conditions(positive, bridge.with_tokens_of(positive, negative), 4.0)
        out = bridge.sample_with_core(watched, latent, conditions, settings, bridge.Core(), 3)
        video, inside = bridge.streams_of({"samples": out})[0], model.model.process_latent_in(clean)
        found[f"{held} {flow}"] = {
            "kept": distance(video[:, :, 0], clean[:, :, 0]),
            "seen": distance(seen[0], inside[:, :, 0] if held == "clean" else noise[:, :, 0]),
        }
        if flow == "discrete":
            guided = core.GuidedDenoiser(core.load_model(path), positive[0][0], negative[0][0], 4.0)
            tokens = torch.tensor([[3, 4, 1]])
            alone = core.text_to_video(guided, noise, settings, text=tokens, kept=(inside, free))
            found[f"{held} {flow}"]["alone"] = distance(video, model.model.process_latent_out(alone))
    return found


def video_to_text_is_our_loop() -> bool:
    """Video-to-text as a mask on the stock sampler against uvg_core's own, from the same noise."""
    model = embedding_model()
    video = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    text = bridge.streams_of(nested_latent(model))[1]
    latent = {"samples": bridge.nested(video, text)}
    noise = bridge.prepare_noise(latent, 3)
    sigmas = pack_module("uvg_core.flow.schedule").video_sigmas(6, 1.0)
    mask = comfy.nested_tensor.NestedTensor((torch.zeros(1, 1, 2, 4, 6), torch.ones(1, 1, LENGTH)))
    conditions, settings = bridge.Conditions(conditioning(2), conditioning(2)), core.Sampling(steps=6, shift=1.0)
    out = bridge.sample_with_core(model, {**latent, "noise_mask": mask}, conditions, settings, bridge.Core(), 3)
    network = random_network(text_flow="embedding")
    z = noise.unbind()[1].transpose(1, 2)
    clean = model.model.process_latent_in(video)
    for here, there in itertools.pairwise(sigmas.tolist()):
        times = torch.zeros(1), torch.full((1,), 1000 * here)
        velocity = network(
            clean, z, *times, conditioning(2)[0][0], options=core.model.PassOptions(want_velocity=False)
        ).logits
        z = z + velocity * (there - here)
    return distance(out.unbind()[1].transpose(1, 2), z) <= 2e-5


def our_samplers_take_the_embedding_flow() -> dict[str, Any]:
    """Video-to-text and joint of uvg_core inside ComfyUI, with the embedding flow."""
    model = embedding_model()
    video = bridge.streams_of(nested_latent(model))[0]
    start = {"samples": video}
    (latent, text) = joint(model, conditioning(2), conditioning(3), latent=start, text_length=LENGTH, steps=4)
    return {"video": list(latent["samples"].shape), "text": list(text.tokens.shape), "steps": len(text.record)}


def same_words_everywhere() -> dict[str, Any]:
    """Discrete video-to-text, ranking and joint through ComfyUI against uvg_core alone, same seeds."""
    path = checkpoint("words", torch.float32)
    model = bridge.load_network(path, "default", None)
    network = core.load_model(path, dtype=torch.float32)
    latent = torch.randn(2, 16, 2, 4, 6, generator=torch.Generator().manual_seed(4))
    clean = model.model.process_latent_in(latent)
    texts, settings = [[3, 4, 1], [9, 8, 7, 1]], core.Sampling(steps=8, seed=5, text_length=6)

    def job(hosted: Any, video: Any) -> Any:
        scores = core.caption_likelihood(hosted, video[:1], texts, core.Ranking(samples=6))
        return core.video_to_text(hosted, video, settings), scores

    found = bridge.run_on_clip(model, job, latent, core.Sampling())
    alone = core.GuidedDenoiser(network)
    words = core.video_to_text(alone, clean, settings)
    scores = core.caption_likelihood(alone, clean[:1], texts, core.Ranking(samples=6))

    positive, negative = conditioning(2), conditioning(3)
    start = empty()
    (both, text) = joint(model, positive, negative, latent=start, steps=8)
    guided = core.GuidedDenoiser(network, positive[0][0], negative[0][0], 4.0)
    sampling = core.Sampling(steps=8, text_length=6, seed=1, shift=3.0)
    alone = core.joint(guided, bridge.prepare_noise(start, 1), sampling)
    return {
        "words": torch.equal(found[0], words),
        "scores": distance(found[1], scores),
        "joint words": torch.equal(text.tokens, alone.text),
        "joint video": distance(both["samples"], model.model.process_latent_out(alone.video)),
    }


def advanced_sampler() -> float:
    """SamplerCustomAdvanced with core's guider, schedule and sampler nodes is the stock KSampler."""
    model = bridge.with_shift(bridge.load_network(checkpoint("discrete", torch.float32), "default", None), 3.0)
    positive, negative = conditioning(2, tokens=[3, 1]), conditioning(3)
    (guider,) = run("CFGGuider", model=model, positive=positive, negative=negative, cfg=4.0)
    (noise,) = run("RandomNoise", noise_seed=3)
    (sampler,) = run("KSamplerSelect", sampler_name="euler")
    (sigmas,) = run("BasicScheduler", model=model, scheduler="simple", steps=4, denoise=1.0)
    out, denoised = run(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=empty()
    )
    nested_model = embedding_model()
    (guider,) = run("CFGGuider", model=nested_model, positive=positive, negative=negative, cfg=4.0)
    both, _ = run(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider,
        sampler=sampler,
        sigmas=sigmas,
        latent_image=nested_latent(nested_model),
    )
    assert [list(p.shape) for p in bridge.streams_of(both)] == shapes(nested_model, nested_latent(nested_model))
    assert denoised["samples"].shape == out["samples"].shape
    return distance(out["samples"], sampled(model, positive, negative, empty()))


def memory() -> dict[str, float]:
    """What ComfyUI is told a run needs: a packed latent as much as the video in it."""
    model = embedding_model()
    plain = model.model.memory_required([1, 16, 21, 60, 104])
    model.model.latent_shapes = [[1, 16, 21, 60, 104], [1, 64, LENGTH]]
    packed = model.model.memory_required([1, 1, 16 * 21 * 60 * 104 + 64 * LENGTH])
    model.model.latent_shapes = None
    return {"plain": plain, "packed": packed}


def joint_keeps_words() -> dict[str, Any]:
    """Joint Sampler with words that the mask of a text stream keeps."""
    model = embedding_model()
    empty_text = bridge.streams_of(nested_latent(model))[1]
    video = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    as_content = pack_module("uvg_core.sampling.start").as_text_content
    ids = torch.tensor([[3, 7, 30, 1, 0]])
    words = as_content(model.model.diffusion_model, ids).transpose(1, 2).float()
    free = torch.ones(1, 1, LENGTH)
    free[..., [0, 2]] = 0
    frames = torch.ones(1, 1, 2, 4, 6)
    frames[:, :, 0] = 0

    def sample(text: Any, **changes: Any) -> Any:
        mask = comfy.nested_tensor.NestedTensor((frames, free))
        latent = {"samples": bridge.nested(video, text), "noise_mask": mask}
        given = {"seed": 1, "steps": 3, "guidance": 2.0, "shift": 3.0, "text_length": 0, **changes}
        return run(
            "JointSampler", model=model, positive=conditioning(2), negative=conditioning(3), latent=latent, **given
        )

    latent, text, *_ = sample(words)
    return {
        "words": text.tokens.tolist(),
        "frames": [distance(latent["samples"][:, :, n], video[:, :, n]) for n in range(2)],
        "mask left": "noise_mask" in latent,
        "empty": message(lambda: sample(torch.zeros_like(empty_text))),
        "length": message(lambda: sample(words, text_length=9)),
    }
