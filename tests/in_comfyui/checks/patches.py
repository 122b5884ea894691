"""What ``test_patches`` asks: what plain Wan accepts, ours accepts, with the same result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from check_made import (
    bridge,
    checkpoint,
    conditioning,
    core,
    distance,
    empty,
    joint,
    load_embedded,
    model_folder,
    plain_wan,
    run,
    sampled,
    saved,
)
from torch import Tensor

RANK = 4


def pair(**changes: Any) -> tuple[Any, Any]:
    path = checkpoint("patched", torch.float32, **changes)
    return bridge.with_shift(bridge.load_network(path, "default", None), 3.0), plain_wan(path)


def both(patch: Callable[[Any], Any], **changes: Any) -> dict[str, float]:
    """The distance between ours and Wan with a patch, and what the patch changes at all."""
    outs = []
    ours, wan = pair()
    for model in (ours, wan):
        outs.append(sampled(patch(model), conditioning(2), conditioning(3), empty(), **changes))
    bare = sampled(ours, conditioning(2), conditioning(3), empty(), **changes)
    return {"gap": distance(*outs), "effect": distance(outs[0], bare)}


def _named(node_id: str, **widgets: Any) -> Callable[[Any], Any]:
    return lambda model: run(node_id, model=model, **widgets)[0]


def _scaled_block(model: Any) -> Any:
    """A replacement that calls the block and changes what comes out."""

    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = extra["original_block"]({**args, "txt": args["txt"] * 0.9})
        return {"img": out["img"] * 1.1}

    patched = model.clone()
    patched.set_model_patch_replace(replaced, "dit", "double_block", 1)
    return patched


def _after_block(model: Any) -> Any:
    def after(args: dict[str, Any]) -> dict[str, Any]:
        assert args["img"].shape[1] == 12, args["img"].shape
        return {**args, "img": args["img"] * (1 + 0.1 * args["block_index"])}

    patched = model.clone()
    patched.set_model_patch(after, "double_block")
    return patched


def _attention_output(model: Any) -> Any:
    def after(args: dict[str, Any]) -> torch.Tensor:
        assert args["q"].shape[2:] == (2, 32), args["q"].shape
        return args["x"] * 0.7

    patched = model.clone()
    patched.set_model_patch(after, "attn1_patch")
    return patched


def _attention_override(model: Any) -> Any:
    def override(function: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(q * 0.5, *args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    return patched


def _wrapped(model: Any) -> Any:
    def wrapper(executor: Any, x: torch.Tensor, timestep: Any, context: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return executor(x, timestep, context * 0.8, *args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key("diffusion_model", "test", wrapper)
    return patched


PATCHES: dict[str, Callable[[Any], Any]] = {
    "SkipLayerGuidanceDiT": _named(
        "SkipLayerGuidanceDiT",
        double_layers="1",
        single_layers="",
        scale=3.0,
        start_percent=0.0,
        end_percent=1.0,
        rescaling_scale=0.0,
    ),
    "ScaleROPE": _named("ScaleROPE", scale_x=0.5, shift_x=1.0, scale_y=2.0, shift_y=0.0, scale_t=1.5, shift_t=0.0),
    "ModelSamplingSD3": _named("ModelSamplingSD3", shift=6.0),
    "EasyCache": _named("EasyCache", reuse_threshold=3.0, start_percent=0.1, end_percent=0.95, verbose=False),
    "RescaleCFG": _named("RescaleCFG", multiplier=0.7),
    "block replaced": _scaled_block,
    "after each block": _after_block,
    "attention output": _attention_output,
    "attention override": _attention_override,
    "network wrapper": _wrapped,
}


def patched() -> dict[str, dict[str, float]]:
    return {name: both(patch, steps=6) for name, patch in PATCHES.items()}


def patched_joint_runs() -> dict[str, Any]:
    """Our own sampler under the same patches: it runs, and the patch does something to the video."""
    model, _ = pair()
    positive, negative = conditioning(2, tokens=[3, 4, 1]), conditioning(3)

    plain = joint(model, positive, negative, text_length=4)
    found: dict[str, Any] = {}
    for name, patch in PATCHES.items():
        if name == "ModelSamplingSD3":  # our sampler has a shift of its own
            continue
        latent, text = joint(patch(model), positive, negative, text_length=4)
        found[name] = [distance(latent["samples"], plain[0]["samples"]), list(text.tokens.shape)]
    return found


def reading_under_patches() -> dict[str, Any]:
    """Ranking with the embedded model, whose clean video does not see the text: a replacement that does nothing
    changes nothing, and what patches change shows."""
    model, clip, _ = load_embedded()
    latent = {"samples": torch.randn(1, 16, 3, 6, 6, generator=torch.Generator().manual_seed(1))}
    texts = "a red circle\n\na blue star"

    def scores(patch: Callable[[Any], Any]) -> Any:
        inputs = {"clip": clip, "latent": latent, "texts": texts, "samples": 2, "seed": 0}
        return run("UniViGURankCaptions", model=patch(model), **inputs)[1]

    def same_block(model: Any) -> Any:
        patched = model.clone()
        patched.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 1)
        return patched

    def weaker_attention(model: Any) -> Any:
        patched = model.clone()
        patched.set_model_patch(lambda args: args["x"] * 0.5, "attn1_patch")
        return patched

    return {
        "rule": bridge.network_of(model).config.v2t_attention,
        "bare": scores(lambda model: model),
        "same block": scores(same_block),
        "weaker attention": scores(weaker_attention),
    }


def guidance_that_ends() -> dict[str, Any]:
    """Both samplers with guidance for a share of their steps: how often the network ran, on how many rows, and the
    distance from a run that is guided all along and from one that never is."""
    model, _ = pair()
    positive, negative = conditioning(2, tokens=[3, 4, 1]), conditioning(3)
    rows: list[int] = []

    def count(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    counted = model.clone()
    counted.add_wrapper_with_key("diffusion_model", "count", count)

    def clip(node: str, guidance: float, **changes: Any) -> torch.Tensor:
        rows.clear()
        given = {"positive": positive, "negative": negative, "seed": 1, "guidance": guidance, "shift": 3.0}
        if node == "UniFlowSampler":
            given |= {"sampler": "euler", "scheduler": "uniform", "denoise": 1.0}
        else:
            given |= {"text_length": 4}
        return run(node, model=counted, latent=empty(), **given, **{"steps": 4, **changes})[0]["samples"]

    found: dict[str, Any] = {}
    for node in ("UniFlowSampler", "JointSampler"):
        whole, never = clip(node, 4.0), clip(node, 1.0)
        for end in (0.0, 0.5, 1.0):
            part = clip(node, 4.0, guidance_end=end)
            found[f"{node} {end}"] = [sum(rows), distance(part, whole), distance(part, never)]
        # The sigma of step 17 comes back from the clock a little larger than it was.
        clip(node, 4.0, guidance_end=0.85, steps=20)
        found[f"{node}, 17 of 20"] = sum(rows)
    return found


def skip_layer_text() -> dict[str, float]:
    """Skip-layer guidance runs the network again, worse on purpose: its text is not to be heard. At a scale of almost
    nothing, a joint run is the run without it."""
    model, _ = pair()
    positive, negative = conditioning(2), conditioning(3)
    skipping = run(
        "SkipLayerGuidanceDiT",
        model=model,
        double_layers="1",
        single_layers="",
        scale=1e-6,
        start_percent=0.0,
        end_percent=1.0,
        rescaling_scale=0.0,
    )[0]
    outs = [joint(m, positive, negative) for m in (model, skipping)]
    return {
        "video": distance(outs[0][0]["samples"], outs[1][0]["samples"]),
        "words": float((outs[0][1].tokens != outs[1][1].tokens).sum()),
    }


def lora_file(name: str, style: str, text: bool = False, width: int | None = None, seed: int = 0) -> str:
    """A LoRA on one layer of every kind, in one of the names that people meet."""
    g = torch.Generator().manual_seed(seed)
    network = bridge.network_of(pair()[0])
    layers = {
        "self_attn.q": "attn1.to_q",
        "cross_attn.o": "attn2.to_out.0",
        "ffn.0": "ffn.net.0.proj",
        "ffn.2": "ffn.net.2",
    }
    if text:
        layers = {**layers, "ffn_t.0": "ffn_t.net.0.proj"}
    tensors = {}
    for block in range(3):
        for native, diffusers in layers.items():
            shape = network.get_submodule(f"blocks.{block}.{native}").weight.shape
            rows, columns = shape if width is None else (width, width)
            a, b = torch.randn(RANK, columns, generator=g) * 0.3, torch.randn(rows, RANK, generator=g) * 0.3
            if style == "comfyui":
                tensors[f"diffusion_model.blocks.{block}.{native}.lora_A.weight"] = a
                tensors[f"diffusion_model.blocks.{block}.{native}.lora_B.weight"] = b
            elif style == "musubi":
                bare = f"lora_unet_blocks_{block}_{native.replace('.', '_')}"
                tensors |= {f"{bare}.lora_down.weight": a, f"{bare}.lora_up.weight": b}
                tensors[f"{bare}.alpha"] = torch.tensor(float(RANK))
            else:
                tensors[f"transformer.blocks.{block}.{diffusers}.lora_A.weight"] = a
                tensors[f"transformer.blocks.{block}.{diffusers}.lora_B.weight"] = b
    path = model_folder("loras") / f"{name}.safetensors"
    comfy.utils.save_torch_file(tensors, str(path))
    return str(path)


def loras() -> dict[str, Any]:
    """Wan LoRAs in three kinds of names through our node, and through the stock loader beside core's Wan."""
    ours, wan = pair()
    positive, negative = conditioning(2), conditioning(3)
    found: dict[str, Any] = {}
    bare = sampled(ours, positive, negative, empty())
    results = []
    for style in ("comfyui", "musubi", "diffusers"):
        path = lora_file(style, style)
        patched, match = bridge.apply_lora(ours, path, 1.0, 1.0)
        found[style] = str(match)
        results.append(sampled(patched, positive, negative, empty()))
        found[f"{style} effect"] = distance(results[-1], bare)
    found["styles agree"] = max(distance(results[0], other) for other in results[1:])
    stored = comfy.utils.load_torch_file(lora_file("comfyui", "comfyui"))
    patched_by_core = [comfy.sd.load_lora_for_models(model, None, stored, 1.0, 0)[0] for model in (ours, wan)]
    stock = [sampled(model, positive, negative, empty()) for model in patched_by_core]
    found["stock loader, ours and Wan"] = distance(*stock)
    found["stock loader and our node"] = distance(stock[0], results[0])
    return found


def own_lora() -> dict[str, Any]:
    """A LoRA on both experts: each strength moves its own stream."""
    ours, _ = pair()
    path = lora_file("own", "comfyui", text=True)
    found: dict[str, Any] = {}
    positive, negative = conditioning(2, tokens=[3, 4, 5, 1]), conditioning(3)
    for name, strengths in (("none", (0.0, 0.0)), ("video", (1.0, 0.0)), ("text", (0.0, 1.0))):
        patched, match = bridge.apply_lora(ours, path, *strengths)
        found[f"{name} report"] = str(match)
        found[name] = sampled(patched, positive, negative, empty())
        found[f"{name} without text"] = sampled(patched, conditioning(2), negative, empty())
    return {
        "report": found["text report"],
        "video moves video": distance(found["video"], found["none"]),
        "text moves video through attention": distance(found["text"], found["none"]),
        "text leaves plain Wan alone": distance(found["text without text"], found["none without text"]),
    }


def student_lora() -> dict[str, Any]:
    """A few-step LoRA beside its checkpoint: where it is listed, what it says, and the steps that samplers take."""
    model, _, _ = load_embedded()
    folder, width = model_folder("uni_vigu"), bridge.config_of(model).dim
    comfy.utils.save_torch_file({}, str(folder / "mine.safetensors"))
    layer, stated = "diffusion_model.blocks.0.self_attn.q", {"distill": {"passes": 2, "joint_passes": 3}}
    halves = {f"{layer}.lora_A.weight": torch.zeros(2, width), f"{layer}.lora_B.weight": torch.zeros(width, 2)}
    comfy.utils.save_torch_file(halves, str(folder / "mine_fast.safetensors"), {"uvg_training": json.dumps(stated)})
    lora = {"lora": "mine_fast.safetensors", "strength_text": 1.0}
    (patched, report) = run("UniViGULoraLoader", model=model, strength_video=1.0, **lora)
    (off, _) = run("UniViGULoraLoader", model=model, strength_video=0.0, **lora)
    (file,) = run("UniViGUSave", model=patched, filename_prefix="student", dtype="as loaded")
    recipes = [bridge.run_facts(one) for one in (model, off, patched)] + [core.read_config(saved(file)).run]
    other = model.clone()  # as Check Uni-ViGU does
    changed = dataclasses.replace(bridge.config_of(model), time_rounding="bfloat16")
    other.add_object_patch("diffusion_model.config", changed)
    comfy.model_management.load_models_gpu([other])
    lists = {kind: bridge.file_names(kind) for kind in ("checkpoint", "lora")}
    for left in folder.glob("mine*.safetensors"):  # the folder is the pack's own
        left.unlink()
    return {
        "report": report,
        "recipes": [(one.steps, one.joint_steps, one.guidance_scale) for one in recipes],
        "config": [bridge.config_of(one).time_rounding for one in (model, other)],
        "listed": {kind: [n for n in names if n.startswith("mine")] for kind, names in lists.items()},
    }


def merged_loras(base: str, files: list[str]) -> dict[str, Any]:
    """What the node's patches make of every weight, as core computes them, beside what the command line makes."""
    ours = bridge.load_network(base, "default", None)
    found: dict[str, Any] = {}
    strengths = {"video": 0.7, "text": -1.5}
    with torch.inference_mode(False), torch.no_grad():
        own = {name: weight.clone() for name, weight in ours.model.diffusion_model.state_dict().items()}
        for path in files:
            patched, match = bridge.apply_lora(ours, path, **strengths)
            choice = core.checkpoint.LoraChoice(Path(path), **strengths)
            lora = core.checkpoint.Lora(choice, ours.model.diffusion_model.config)
            gap, changed = 0.0, 0
            for name, weight in own.items():
                patches = patched.patches.get(f"diffusion_model.{name}", [])
                made = comfy.lora.calculate_weight(patches, weight.clone(), name) if patches else weight
                gap = max(gap, distance(made, lora.apply(name, weight)))
                changed += not torch.equal(made, weight)
            found[path] = {"gap": gap, "changed": changed, "match": str(match)}
    # All at once and off again, through core's own loading.
    several = ours
    for path in files[:2]:
        several, _ = bridge.apply_lora(several, path, **strengths)
    comfy.model_management.load_models_gpu([several], force_full_load=True)
    loaded = several.model.diffusion_model.state_dict()
    choices = [core.checkpoint.LoraChoice(Path(path), **strengths) for path in files[:2]]
    expected = core.load_model(base, loras=choices).state_dict()
    on = max(distance(loaded[name], weight) for name, weight in expected.items())
    several.detach()
    off = ours.model.diffusion_model.state_dict()
    return {"files": found, "loaded": on, "unloaded": max(distance(off[name], weight) for name, weight in own.items())}


def other_adapters() -> dict[str, str]:
    """LoHa, LoKr and full differences, with and without alpha."""
    ours, _ = pair()
    at = "diffusion_model.blocks.0.ffn.0"  # 64 -> 96
    kinds = {
        "loha": {
            "hada_w1_a": torch.ones(96, 4), "hada_w1_b": torch.ones(4, 64),
            "hada_w2_a": torch.ones(96, 4), "hada_w2_b": torch.ones(4, 64), "alpha": torch.tensor(4.0),
        },
        "lokr": {"lokr_w1": torch.ones(8, 8), "lokr_w2": torch.ones(12, 8), "alpha": torch.tensor(4.0)},
        "diff": {"diff": torch.ones(96, 64), "diff_b": torch.ones(96)},
    }  # fmt: skip
    found = {}
    for kind, tensors in kinds.items():
        path = model_folder("loras") / f"{kind}.safetensors"
        comfy.utils.save_torch_file({f"{at}.{name}": tensor for name, tensor in tensors.items()}, str(path))
        found[kind] = str(bridge.apply_lora(ours, str(path), 1.0, 1.0)[1])
    return found


def wrong_loras() -> list[str]:
    ours, _ = pair()
    messages = []
    other = model_folder("loras") / "other.safetensors"
    comfy.utils.save_torch_file(
        {"diffusion_model.double_blocks.0.img_attn.lora_A.weight": torch.ones(4, 8),
         "diffusion_model.double_blocks.0.img_attn.lora_B.weight": torch.ones(8, 4)}, str(other))  # fmt: skip
    for path in (lora_file("wide", "comfyui", width=5120), str(other), bridge.file_path("checkpoint", bridge.EMBEDDED)):
        try:
            bridge.apply_lora(ours, path, 1.0, 1.0)
            messages.append("applied")
        except Exception as error:
            messages.append(str(error))
    return messages


def lora_hooks() -> dict[str, float]:
    """A LoRA as a hook on the positive prompt, in our joint sampler and in the stock one."""
    ours, wan = pair()
    lora = comfy.utils.load_torch_file(lora_file("hooked", "comfyui"))
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    positive = [[conditioning(2)[0][0], {"hooks": hooks}]]
    outs = [sampled(model, positive, conditioning(3), empty()) for model in (ours, wan)]
    return {
        "gap": distance(*outs),
        "effect": distance(outs[0], sampled(ours, conditioning(2), conditioning(3), empty())),
    }


def low_memory() -> dict[str, float]:
    """Weights that stay away and are cast, with a LoRA put on them, layer by layer as the network runs."""
    found = {}
    ours, _ = pair()
    path = lora_file("lowvram", "comfyui", text=True)
    patched, _ = bridge.apply_lora(ours, path, 1.0, 1.0)
    positive, negative = conditioning(2, tokens=[3, 4, 1]), conditioning(3)
    whole = sampled(patched, positive, negative, empty())
    patched.detach()
    patched.load(patched.load_device, lowvram_model_memory=64)
    layer = patched.model.diffusion_model.blocks[0].ffn_t[0]
    found["cast on the way"] = float(layer.comfy_cast_weights)
    found["patched on the way"] = float(len(layer.weight_function))
    found["gap"] = distance(whole, _without_loading(patched, positive, negative))
    return found


def _without_loading(model: Any, positive: list[Any], negative: list[Any]) -> torch.Tensor:
    """The same sampling, with the weights left as they are."""
    import comfy.sampler_helpers

    kept = comfy.model_management.load_models_gpu
    comfy.model_management.load_models_gpu = lambda *args, **kwargs: None
    try:
        return sampled(model, positive, negative, empty())
    finally:
        comfy.model_management.load_models_gpu = kept


def _caption(model: Any) -> Tensor:
    """Tokens for a clip that is looked at once."""
    sampling = core.Sampling(text_length=4, steps=3, temperature=0.0, video_cache="static")
    clip = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(6))
    return bridge.run_on_clip(model, lambda network, clip: core.video_to_text(network, clip, sampling), clip, sampling)


def compiled(backend: str, both: bool = True) -> dict[str, Any]:
    """The stock compile node: with a held-clean text and, for ``both``, under our joint sampler and for a caption
    beside a kept clip; distances, and 1.0 for other words."""
    ours, _ = pair(num_layers=1)
    model = run("TorchCompileModel", model=ours, backend=backend)[0]
    positive, negative = conditioning(2, tokens=[3, 4, 1]), conditioning(3)
    found = {"text": distance(*(sampled(m, positive, negative, empty(), steps=2) for m in (ours, model)))}
    if both:
        runs = [joint(m, positive, negative, text_length=4, steps=4) for m in (ours, model)]
        found["joint video"] = distance(runs[0][0]["samples"], runs[1][0]["samples"])
        found["joint text"] = float(not torch.equal(runs[0][1].tokens, runs[1][1].tokens))
        found["caption"] = float(not torch.equal(*(_caption(m) for m in (ours, model))))
    return found
