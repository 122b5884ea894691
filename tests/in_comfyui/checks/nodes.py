"""What ``test_nodes`` asks: the nodes one by one, right use and wrong use."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
from check_made import (
    EMBEDDED,
    bridge,
    checkpoint,
    conditioning,
    core,
    distance,
    empty,
    load_embedded,
    message,
    model_folder,
    out,
    plain_wan,
    run,
    said_by,
    sampled,
    saved,
)
from comfy_api.latest import InputImpl
from worker import node_class, pack_module

import nodes

keys = pack_module("uvg_core.checkpoint.keys")
CAPTIONING = {
    "length": 0,
    "steps": 0,
    "seed": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "stop_when_stable": 0,
    "text_update": "bridge",
}
SAMPLE = "a large red circle moves right quickly on a navy background"
SIZE = {"width": 48, "height": 48, "frames": 9, "fps": 0.0}


def sample_clip() -> Any:
    return InputImpl.VideoFromFile(str(Path(folder_paths.get_input_directory()) / "uvg_sample.mp4"))


def encode(**inputs: Any) -> tuple[Any, str]:
    """The latent and the note of Encode Video."""
    latent, note, *_ = run("UniViGUEncodeVideo", **inputs)
    return latent, note


def sample_latent(vae: Any, **changes: Any) -> tuple[Any, str]:
    return encode(video=sample_clip(), vae=vae, **{**SIZE, **changes})


def clips() -> dict[str, Any]:
    """Encode Video: a file, a part of it, images, a budget, a rate; and the notes."""
    _, _, vae = load_embedded()
    whole, note = sample_latent(vae)
    more, more_note = sample_latent(vae, frames=81)
    slow, slow_note = sample_latent(vae, fps=2.0)
    part, part_note = encode(video=sample_clip().as_trimmed(0.5, 0.5), vae=vae, **SIZE)
    images = sample_clip().get_components().images
    from_images, images_note = encode(video=images, vae=vae, **SIZE)
    made = InputImpl.VideoFromComponents(sample_clip().get_components())
    from_memory, _ = encode(video=made, vae=vae, **SIZE)
    latents = {"whole": whole, "more": more, "slow": slow, "part": part, "images": from_images}
    left = cropped_clip()
    cropped, cropped_note = encode(video=left, vae=vae, **SIZE)
    shown = InputImpl.VideoFromComponents(left.get_components())
    by_hand, _ = encode(video=shown, vae=vae, **SIZE)
    seen = pack_module("nodes.media").info_of(left)
    tall = torch.zeros(9, 96, 48, 3)
    tall[:, :48] = 1.0
    free = {"width": 0, "height": 0, "frames": 9, "fps": 0.0}
    fits = {
        "left to it": encode(video=tall, vae=vae, **free)[1],
        "chosen": encode(video=tall, vae=vae, **SIZE)[1],
        "top": encode(video=tall, vae=vae, **SIZE, fit="crop", crop="top")[1],
        "pad": encode(video=tall, vae=vae, **SIZE, fit="pad", background="#ff0000")[1],
        "no colour": message(lambda: encode(video=tall, vae=vae, **SIZE, background="mauve")),
    }
    rates = [
        run("UniViGUEncodeVideo", vae=vae, **{**SIZE, "video": sample_clip(), **given})[2:]
        for given in ({}, {"fps": 2.0}, {"fps": -1.0}, {"video": images}, {"video": images[:1], "width": 96})
    ]
    return {
        "fits": fits,
        "rates": rates,
        "cropped": [distance(cropped["samples"], by_hand["samples"]), distance(cropped["samples"], whole["samples"])],
        "cropped clip": [cropped_note, [seen.width, seen.height, seen.frames]],
        "shapes": {name: list(latent["samples"].shape) for name, latent in latents.items()},
        "notes": [note, more_note, slow_note, part_note, images_note],
        "images differ": distance(whole["samples"], from_images["samples"]),
        "memory differs": distance(whole["samples"], from_memory["samples"]),
    }


def cropped_clip() -> Any:
    """The left half of the sample clip as newer versions of ComfyUI crop: noted down, carried out on decoding."""

    class Cropped(InputImpl.VideoFromFile):
        def has_pending_frame_edits(self) -> bool:
            return True

        def get_dimensions(self) -> tuple[int, int]:
            return 144, 288

        def get_components(self) -> Any:
            parts = super().get_components()
            parts.images = parts.images[:, :, :144]
            return parts

    return Cropped(sample_clip().get_stream_source())


def auto() -> dict[str, Any]:
    """What nodes make of 0, and -1, against the numbers that the embedded checkpoint carries."""
    model, clip, vae = load_embedded()
    left_to_it = {"width": 0, "height": 0, "frames": 0}
    latent, fps, enlarge = run("UniViGUEmptyLatent", model=model, **left_to_it, text_length=0, batch_size=1)
    wide, *_ = run("UniViGUEmptyLatent", model=model, **{**left_to_it, "width": 96}, text_length=0, batch_size=1)
    explicit, automatic = {"steps": 24, "guidance": 5.0, "shift": 3.0}, {"steps": 0, "guidance": -1.0, "shift": 0.0}
    positive, negative = (run("UniViGUTextEncode", clip=clip, text=text)[0] for text in ("a red circle", ""))
    given = {"model": model, "positive": positive, "negative": negative, "latent": latent, "seed": 1}
    core_widgets = {"sampler": "euler", "scheduler": "uniform", "denoise": 1.0}
    clips = [run("UniFlowSampler", **given, **core_widgets, **n)[0]["samples"] for n in (explicit, automatic)]
    joints = [run("JointSampler", **given, text_length=0, **n) for n in (explicit, automatic)]
    chosen, noted = sample_latent(vae)
    read, read_note = sample_latent(vae, **left_to_it)
    _, timed_note = sample_latent(vae, **left_to_it, fps=-1.0)
    plain = bridge.load_vae(bridge.file_path("checkpoint", bridge.EMBEDDED))  # as from another loader
    video = sample_clip()
    by_model, _ = encode(video=video, vae=plain, model=model, **left_to_it, fps=0.0)
    return {
        "latent": [list(latent["samples"].shape), fps, enlarge, list(wide["samples"].shape)],
        "clips": distance(*clips),
        "joint": [distance(*(j[0]["samples"] for j in joints)), torch.equal(*(j[1].tokens for j in joints))],
        "read": [distance(chosen["samples"], read["samples"]), noted == read_note],
        "timed": timed_note,
        "by model": distance(chosen["samples"], by_model["samples"]),
        "unknown": message(lambda: encode(video=video, vae=plain, **{**SIZE, "width": 0})),
        "known": [list(encode(video=video, vae=plain, **SIZE)[0]["samples"].shape)],
    }


def captions() -> dict[str, Any]:
    """Video-to-text on the sample clip: free, batch, template, hint, stopping early."""
    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae)

    def words(latent: Any = latent, **changes: Any) -> Any:
        text, said = run("VideoToTextDenoise", model=model, clip=clip, latent=latent, **{**CAPTIONING, **changes})
        assert said == run("UniViGUTextDecoder", text=text, clip=clip)[0]
        return said, [step.step for step in text.record]

    two = {"samples": torch.cat([latent["samples"]] * 2)}
    (hint,) = run("UniViGUTextEncode", clip=clip, text="a red circle")
    late = [[states, {**extra, "start_percent": 0.0, "end_percent": 0.6}] for states, extra in hint]
    return {
        "late hint": words(hint=late),
        "free": words(),
        "as recommended": [words(temperature=-1.0, seed=seed, steps=6)[0] for seed in range(3)],
        "likeliest": [words(temperature=0.0, seed=seed, steps=6)[0] for seed in range(3)],
        "drawn at random": [words(temperature=10.0, seed=seed, steps=6)[0] for seed in range(3)],
        "again": words(),
        "batch": words(two),
        "template": words(template="a ___ red ___ moves ___"),
        "hint": words(hint=hint),
        "stable": words(stop_when_stable=3),
        "no record": words(record=0),
    }


def looks_at_the_clip() -> dict[str, Any]:
    """How often the steps of a caption look at the clip, and what they say, by the setting and by what hangs on the
    model; two texts ranked with the default."""
    import comfy.context_windows

    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae)
    looks: list[int] = []
    hook = model.model.diffusion_model.patch_embedding.register_forward_hook(lambda *_: looks.append(1))

    def described(model: Any = model, **changes: Any) -> list[Any]:
        looks.clear()
        given = {**CAPTIONING, "latent": latent, "temperature": 0.0, "steps": 8, **changes}
        _, said = run("VideoToTextDenoise", model=model, clip=clip, **given)
        return [said[0], len(looks)]

    patched = model.clone()
    patched.set_model_patch(lambda args: args, "double_block")
    windows = run("WanContextWindowsManual", model=model, context_length=5, context_overlap=1,
        context_schedule=comfy.context_windows.ContextSchedules.STATIC_STANDARD, context_stride=1, closed_loop=False,
        fuse_method=comfy.context_windows.ContextFuseMethods.PYRAMID, freenoise=False)[0]  # fmt: skip
    try:
        found = {name: described(video_cache=name) for name in ("off", "auto", "static", "refresh=2")}
        found["template"] = described(template="a ___ red ___ moves ___")
        found["two clips"] = described(latent={"samples": torch.cat([latent["samples"]] * 2)}, video_cache="static")
        found["patched"] = described(patched)
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger().addHandler(handler)
        try:
            prompts = run("UniViGUTextEncode", clip=clip, text="a circle", stream_text="")[0] * 2
            found["several prompts"] = described(hint=prompts)
        finally:
            logging.getLogger().removeHandler(handler)
        found["log"] = [said.getvalue(), 0]
        found["windows"] = described(windows)
        found["windows, off"] = described(windows, video_cache="off")
        looks.clear()
        run("UniViGURankCaptions", model=model, clip=clip, latent=latent, texts=f"a star\n{SAMPLE}", samples=4, seed=0)
        found["ranking"] = ["", len(looks)]
        network = model.model.diffusion_model
        network.config = dataclasses.replace(network.config, v2t_attention="joint")
        found |= {f"joint, {name}": described(video_cache=name) for name in ("off", "auto", "static", "refresh=2")}
    finally:
        hook.remove()
    return found


def live_text() -> list[str]:
    """What shows in the node while a caption forms."""
    from server import PromptServer

    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae)
    said: list[tuple[str, str, str | None]] = []
    server = PromptServer.instance
    kept, client = server.send_progress_text, server.client_id
    server.send_progress_text = lambda text, node_id, sid=None: said.append((text, node_id, sid))
    try:
        run("VideoToTextDenoise", model=model, clip=clip, latent=latent, **CAPTIONING)
        assert {(node, sid) for _, node, sid in said} == {("1", client)}
        texts = [text for text, *_ in said]
        said.clear()
        server.client_id = None  # a prompt that nobody waits for
        run("VideoToTextDenoise", model=model, clip=clip, latent=latent, **CAPTIONING)
        assert not said
    finally:
        server.send_progress_text, server.client_id = kept, client
    return texts


def interrupted() -> dict[str, Any]:
    """Cancel during each of our long jobs; how many more steps each still takes, and that the next run is fine."""
    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae)
    (positive,) = run("UniViGUTextEncode", clip=clip, text="a red circle")
    (negative,) = run("UniViGUTextEncode", clip=clip, text="")
    calls = 0

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            comfy.model_management.interrupt_current_processing(True)
        return executor(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key("diffusion_model", "watch", watch)
    start = {"samples": torch.zeros(1, 16, 3, 6, 6)}
    common = {"seed": 0, "steps": 24, "guidance": 1.0, "shift": 3.0}
    folder = Path(folder_paths.get_input_directory()) / "uvg_sample_clips"
    jobs = {
        "caption": lambda m: run("VideoToTextDenoise", model=m, clip=clip, latent=latent, **CAPTIONING),
        "template": lambda m: run(
            "VideoToTextDenoise", model=m, clip=clip, latent=latent, template="a ___ red ___", **CAPTIONING
        ),
        "joint": lambda m: run(
            "JointSampler", model=m, positive=positive, negative=negative, latent=start, text_length=0, **common
        ),
        "video": lambda m: run(
            "UniFlowSampler", model=m, positive=positive, negative=negative, latent=start, sampler="euler",
            scheduler="uniform", denoise=1.0, **common,
        ),
        "rank": lambda m: run(
            "UniViGURankCaptions", model=m, clip=clip, latent=latent, texts="a red\na blue", samples=16, seed=0
        ),
        "edit": lambda m: run(
            "UniViGUEdit", model=m, clip=clip, latent=latent, **{**EDIT, "caption": SAMPLE, "change": "red=blue"}
        ),
        "folder": lambda m: run(
            "UniViGUCaptionFolder", model=m, clip=clip, vae=vae, folder=str(folder), subfolders=True, overwrite=True,
            prefix="", template="", **SIZE, **CAPTIONING,
        ),
    }  # fmt: skip
    # As main.py does it: the progress bar's hook is where core's samplers notice.
    comfy.utils.set_progress_bar_global_hook(
        lambda *args, **kwargs: comfy.model_management.throw_exception_if_processing_interrupted()
    )
    found: dict[str, Any] = {}
    for name, job in jobs.items():
        calls = 0
        try:
            job(watched)
            found[name] = ["finished", calls]
        except comfy.model_management.InterruptProcessingException:
            found[name] = ["interrupted", calls]
        comfy.model_management.interrupt_current_processing(False)
    comfy.utils.set_progress_bar_global_hook(None)
    found["after"] = run("UniViGUTextDecoder", text=jobs["caption"](model)[0], clip=clip)[0]
    found["written"] = sorted(p.name for p in folder.glob("*.txt"))
    return found


def one_of_a_batch() -> dict[str, Any]:
    """A clip of a batch, made again alone by its index: the same video and the same words."""
    model, clip, _ = load_embedded()
    (positive,) = run("UniViGUTextEncode", clip=clip, text="a red circle")
    (negative,) = run("UniViGUTextEncode", clip=clip, text="")
    three = {"samples": torch.zeros(3, 16, 3, 6, 6)}
    third = {"samples": torch.zeros(1, 16, 3, 6, 6), "batch_index": [2]}
    outs = [
        run(
            "JointSampler", model=model, positive=positive, negative=negative, latent=latent, text_length=0, seed=3,
            steps=8, guidance=3.0, shift=3.0,
        )
        for latent in (three, third)
    ]  # fmt: skip
    return {
        "video": distance(outs[0][0]["samples"][2:], outs[1][0]["samples"]),
        "words": outs[0][1].tokens[2].tolist() == outs[1][1].tokens[0].tolist(),
    }


def best_of() -> dict[str, Any]:
    """Several draws by both samplers, against the same ones alone and against Rank Clips; and a cancelled one."""
    model, clip, _ = load_embedded()
    prompt = "a small blue square moves up slowly on a beige background"
    (positive,) = run("UniViGUTextEncode", clip=clip, text=prompt)
    (negative,) = run("UniViGUTextEncode", clip=clip, text="")
    plain = [[positive[0][0], {}]]
    start = {"model": model, "negative": negative, "steps": 2, "guidance": 1.0, "shift": 3.0}
    core = {"sampler": "euler", "scheduler": "uniform", "denoise": 1.0}
    two = {"samples": torch.zeros(2, 16, 3, 6, 6)}

    def video(seed: int, count: int = 1, **changes: Any) -> Any:
        given = {**start, **core, "positive": positive, "latent": two, "seed": seed, "best_of": count, **changes}
        return out("UniFlowSampler", **given)

    def joint(seed: int, count: int = 1) -> Any:
        given = {"positive": positive, "latent": two, "text_length": 0, "clip": clip, "best_of": count}
        return out("JointSampler", **start, **given, seed=seed)

    alone, chosen = [video(seed).args[0]["samples"] for seed in (7, 8, 9)], video(7, 3)
    ranked = [
        run("UniViGURankClips", model=model, clip=clip, latent={"samples": torch.stack(row)}, prompt=prompt)
        for row in zip(*alone, strict=True)
    ]
    both, several = [joint(seed) for seed in (7, 8)], joint(7, 2)
    rows = [
        [torch.equal(one.args[0]["samples"][row], several.args[0]["samples"][row]) for one in both] for row in (0, 1)
    ]
    calls = 0

    def cancel(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second draw, behind two steps and one pass for each clip
            comfy.model_management.interrupt_current_processing(True)
        return executor(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key("diffusion_model", "watch", cancel)
    cancelled = video(7, 3, model=watched)
    comfy.model_management.interrupt_current_processing(False)
    return {
        "drawn": [[torch.equal(one[row], chosen.args[0]["samples"][row]) for one in alone] for row in (0, 1)],
        "said": chosen.ui["text"][0],
        "ranked": [[best["batch_index"], every["batch_index"], scores] for best, every, scores in ranked],
        "in order": [torch.equal(every["samples"][0], best["samples"][0]) for best, every, _ in ranked],
        "joint": rows,
        "joint, words": [list(one.args[2]) for one in (*both, several)],
        "joint, said": several.ui["text"],
        "cancelled": [torch.equal(cancelled.args[0]["samples"], alone[0]), cancelled.ui["text"][0]],
        "no words": message(lambda: video(7, 2, positive=plain)),
        "no prompt": message(lambda: run("UniViGURankClips", model=model, clip=clip, latent=two, prompt=" ")),
    }


def rank() -> list[Any]:
    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae)
    texts = f"a small blue square moves up slowly on a gray background\n\n  {SAMPLE}"
    best, scores, plot = run(
        "UniViGURankCaptions", model=model, clip=clip, latent=latent, texts=texts, samples=4, seed=0
    )
    return [best, scores, list(plot.shape)]


def folder(path: str) -> dict[str, Any]:
    """Captions beside clips, twice, then with a prefix and overwriting."""
    model, clip, vae = load_embedded()

    def caption(**changes: Any) -> Any:
        options = {"folder": path, "subfolders": True, "overwrite": False, "prefix": "", "template": ""}
        *texts, table = run(
            "UniViGUCaptionFolder", model=model, clip=clip, vae=vae, **{**options, **SIZE, **CAPTIONING, **changes}
        )
        return [*texts, list(table.shape)]

    cls = node_class("UniViGUCaptionFolder")
    asked = {"folder": f' "{path}"', "subfolders": True}
    before = cls.fingerprint_inputs(**asked)
    first = caption(folder=asked["folder"])
    return {
        "first": first,
        "second": caption(),
        "prefixed": caption(overwrite=True, prefix="mystyle, ", subfolders=False),
        "drawn": [
            caption(clip_seeds=True, format="csv", file_suffix=name, temperature=3.0, subfolders=subfolders, hint=hint)
            for name, subfolders, hint in (("all", True, ""), ("some", False, ""), ("hinted", False, "a red circle"))
        ],
        "noticed": cls.fingerprint_inputs(**asked) != before,
        "files": {p.name: p.read_text(encoding="utf-8") for p in sorted(Path(path).rglob("*.txt"))},
    }


def saving() -> dict[str, Any]:
    """Save: every dtype, with a LoRA on it, with all parts; and what comes back."""
    path = checkpoint("to_save", torch.float32, {"text_length": 7})
    model = bridge.load_network(path, "default", None)
    reference = dict(model.model.diffusion_model.state_dict())
    found: dict[str, Any] = {}
    for kind in ("diffusion_models", "checkpoints"):  # as main.py does
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.get_output_directory()) / kind))
    for dtype in ("as loaded", "bf16", "fp16", "fp32", "fp8"):
        (file,) = run("UniViGUSave", model=model, filename_prefix=f"saved_{dtype.replace(' ', '_')}", dtype=dtype)
        again = core.load_model(saved(file), dtype=torch.float32)
        gaps = [distance(tensor.float(), reference[name]) for name, tensor in again.state_dict().items()]
        found[dtype] = [max(gaps), core.read_config(saved(file)).run.text_length, Path(file).parent.name]
        found[f"{dtype} in the list"] = Path(file).name in [Path(n).name for n in bridge.file_names("checkpoint")]
    lora = model_folder("loras") / "saved.safetensors"
    comfy.utils.save_torch_file(
        {"diffusion_model.blocks.0.ffn_t.0.lora_A.weight": torch.ones(1, 64),
         "diffusion_model.blocks.0.ffn_t.0.lora_B.weight": torch.ones(96, 1)}, str(lora))  # fmt: skip
    (patched, report) = run("UniViGULoraLoader", model=model, lora=lora.name, strength_video=1.0, strength_text=0.5)
    (file,) = run("UniViGUSave", model=patched, filename_prefix="saved_lora", dtype="as loaded")
    changed = core.load_model(saved(file)).state_dict()
    found["lora"] = [report, distance(changed["blocks.0.ffn_t.0.weight"], reference["blocks.0.ffn_t.0.weight"] + 0.5)]
    tiny, clip, vae = load_embedded()
    (file,) = run("UniViGUSave", model=tiny, filename_prefix="saved_whole", dtype="fp16", clip=clip, vae=vae)
    again, clip_again, vae_again = load_embedded(checkpoint=Path(file).name)
    prompt = "a small blue square moves up slowly on a gray background"
    pixels = torch.rand(9, 48, 48, 3, generator=torch.Generator().manual_seed(0))
    found["whole"] = [
        distance(*(c.encode_from_tokens(c.tokenize(prompt)) for c in (clip, clip_again))),
        distance(vae.encode(pixels), vae_again.encode(pixels)),
        max(
            distance(a, b)
            for a, b in zip(tiny.model.parameters(), again.model.parameters(), strict=True)
        ),
        Path(file).parent.name,
    ]  # fmt: skip
    return found


def scaled_files() -> dict[str, Any]:
    """Networks in fp8 with scales: saved as something else, and read under every name that their scales go by."""
    keys = pack_module("uvg_core.checkpoint.keys")
    path, eight = checkpoint("unscaled", torch.float32), str(model_folder() / "scaled.safetensors")
    core.convert(path, eight, dtype="fp8")
    reference = dict(core.load_model(eight, dtype=torch.float32).state_dict())
    found: dict[str, Any] = {"saved": {}, "learnt": {}, "read": {}}

    def apart(state: dict[str, torch.Tensor], factor: float = 1.0) -> float:
        """The worst error of a weight, as a part of its largest number."""
        errors = [
            (state[name].float() - factor * w).abs().max() / (factor * w.abs().max())
            for name, w in reference.items()
            if w.any()
        ]
        return float(max(errors))

    def numbers(model: Any) -> dict[str, torch.Tensor]:
        stored = model.model_state_dict_for_saving(model.model.diffusion_model, "diffusion_model.")
        return {name: bridge.value_of(stored, name) for name in reference}

    model = bridge.load_network(eight, "default", None)
    for dtype in (None, "bf16", "fp32", "fp8"):
        for kind, learnt, factor in (("saved", None, 1.0), ("learnt", {n: 1.5 * w for n, w in reference.items()}, 1.5)):
            file = model_folder() / f"scaled_{kind}_{dtype}.safetensors"
            bridge.save_checkpoint(file, model, None, None, dtype, learnt=learnt)
            again = bridge.load_network(str(file), "default", None)
            found[kind][str(dtype)] = [
                apart(core.load_model(file, dtype=torch.float32).state_dict(), factor),
                apart(numbers(again), factor),
            ]
    stored, metadata = comfy.utils.load_torch_file(eight, return_metadata=True)
    bare = {"config": metadata["config"]}
    old = {name.replace("weight_scale", "scale_weight"): tensor for name, tensor in stored.items()}
    release = {}
    for name, tensor in stored.items():
        weight = keys.from_native(name.replace(".weight_scale", ".weight"), "release")
        release[weight.replace(".weight", ".weight_scale") if name.endswith("_scale") else weight] = tensor
    for kind, tensors in (("no metadata", stored), ("older names", old), ("the release's names", release)):
        file = model_folder() / f"scaled_{kind.replace(' ', '_')}.safetensors"
        comfy.utils.save_torch_file(tensors, str(file), metadata=bare)
        found["read"][kind] = [
            apart(core.load_model(file, dtype=torch.float32).state_dict()),
            apart(numbers(bridge.load_network(str(file), "default", None))),
        ]
    return found


def dangling_links() -> bool:
    """The lists of files when one of them leads nowhere, as the schemas are made."""
    link = model_folder("text_encoders") / "dangling.safetensors"
    link.symlink_to("/nowhere/at/all")
    folder_paths.filename_list_cache.clear()
    try:
        return link.name in folder_paths.get_filename_list("text_encoders") and link.name not in bridge.file_names(
            "null_embedding"
        )
    finally:
        link.unlink()
        folder_paths.filename_list_cache.clear()


def changed_files() -> dict[str, list[str]]:
    """The fingerprints of the nodes that read files by name: without the file, with a dangling link, with the file,
    the same again, and with another file under the name."""
    places = {
        ("UniViGULoader", "checkpoint"): "diffusion_models",
        ("UniViGULoader", "text_encoder"): "text_encoders",
        ("UniViGULoader", "vae"): "vae",
        ("UniViGULoraLoader", "lora"): "loras",
        ("UniViGUTextEncode", "null_embedding"): "embeddings",
        ("UniViGUCheck", "null_embedding"): "text_encoders",
    }
    own = bridge.FROM_CHECKPOINT
    others = {"checkpoint": EMBEDDED, "text_encoder": own, "vae": own, "latent_space": own, "strength_video": 1.0}
    found: dict[str, list[str]] = {}
    for (node, widget), folder in places.items():
        file = model_folder(folder) / "replaced.safetensors"
        states = found[f"{node}.{widget}"] = []

        def note(node: str = node, widget: str = widget, states: list[str] = states) -> None:
            states.append(node_class(node).fingerprint_inputs(**{**others, widget: "replaced.safetensors"}))

        note()
        file.symlink_to("/nowhere/at/all")
        note()
        file.unlink()
        file.write_bytes(b"one")
        note()
        note()
        file.write_bytes(b"another")
        note()
        file.unlink()
    return found


def connected_files() -> list[str]:
    """Fingerprints where another node gives the file's name: before the file was opened, afterwards twice, after it was
    replaced, and again."""
    file, states = model_folder("loras") / "connected.safetensors", list[str]()

    def note() -> None:
        states.append(node_class("UniViGULoraLoader").fingerprint_inputs(lora=None, strength_video=1.0))

    file.write_bytes(b"one")
    note()
    pack_module("nodes.comfy.folders").file_path("lora", file.name)
    note()
    note()
    file.write_bytes(b"another")
    note()
    note()
    file.unlink()
    return states


def text_states() -> dict[str, float]:
    """umT5 and release states against uvg_core's own text encoder."""
    text = pack_module("uvg_core.media.text_encoder")
    path = bridge.file_path("checkpoint", bridge.EMBEDDED)
    weights = {k: v.float() for k, v in core.checkpoint.read_part(path, keys.ENCODER_PREFIX).items()}
    found = {}
    for states in ("umT5", "release"):
        _, clip, _ = load_embedded(text_states=states)
        ours = clip.encode_from_tokens(clip.tokenize("a red circle moves left"))
        try:
            alone = text.TextEncoder(text.load_encoder(weights, states), bridge.tokenizer_of(clip), states)
        except core.UniViGUError:  # transformers is no part of ComfyUI's own requirements everywhere
            found[states] = -1.0
            continue
        found[states] = distance(ours, alone(["a red circle moves left"]))
        found[f"{states} padding"] = float(ours[0, 20:].abs().max())
    return found


def separate_files() -> dict[str, Any]:
    """The embedded model taken apart as the released one comes: a .pth in the release's names, a umT5 in every layout
    that core reads, a VAE. What each combination generates, against the all-in-one file."""
    tensors = comfy.utils.load_torch_file(bridge.file_path("checkpoint", bridge.EMBEDDED))
    from_native = pack_module("uvg_core.checkpoint.keys").from_native
    prefix = "model.diffusion_model."
    released = {from_native(k.removeprefix(prefix), "release"): v for k, v in tensors.items() if k.startswith(prefix)}
    released["rotary_emb_text.inv_freq"] = pack_module("uvg_core.model.rope").frequencies(32).float()
    torch.save({"model": released, "optimizer": {"state": {}}, "step": 7}, model_folder() / "released.pth")
    vae = {k.removeprefix(keys.VAE_PREFIX): v for k, v in tensors.items() if k.startswith(keys.VAE_PREFIX)}
    comfy.utils.save_torch_file(vae, str(model_folder("vae") / "alone.safetensors"))
    prefix = keys.ENCODER_PREFIX
    encoder = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    encoders = {"fp16": encoder, "fp32": {k: v.float() for k, v in encoder.items()}}
    matrices = [k for k in encoder if "DenseReluDense" in k or ("SelfAttention." in k and "bias" not in k)]
    encoders["fp8"] = {k: v.to(torch.float8_e4m3fn) if k in matrices else v for k, v in encoder.items()}
    scaled = dict(encoder)
    for name in matrices:
        scale = encoder[name].float().abs().max() / 448
        scaled[name] = (encoder[name].float() / scale).to(torch.float8_e4m3fn)
        scaled[name.removesuffix("weight") + "scale_weight"] = scale
    encoders["scaled fp8"] = {**scaled, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, weights in encoders.items():
        stored = {**weights, "spiece_model": tensors[keys.TOKENIZER_KEY]}
        comfy.utils.save_torch_file(stored, str(model_folder("text_encoders") / f"alone {name}.safetensors"))
    folder_paths.filename_list_cache.clear()

    def generated(parts: Any) -> torch.Tensor:
        model, clip, decoder = parts
        (positive,) = run("UniViGUTextEncode", clip=clip, text=SAMPLE)
        (negative,) = run("UniViGUTextEncode", clip=clip, text="")
        latent = {"samples": torch.zeros(1, 16, 3, 6, 6)}
        (out,) = run(
            "UniFlowSampler", model=model, positive=positive, negative=negative, latent=latent, seed=0, steps=12,
            guidance=3.0, shift=3.0, sampler="euler", scheduler="uniform", denoise=1.0,
        )  # fmt: skip
        return decoder.decode(out["samples"])

    whole = generated(load_embedded(text_encoder="alone fp16.safetensors"))
    found: dict[str, Any] = {"all-in-one, its own encoder": distance(whole, generated(load_embedded()))}
    for name in encoders:
        parts = load_embedded(
            checkpoint="released.pth",
            text_encoder=f"alone {name}.safetensors",
            vae="alone.safetensors",
            latent_space="normalised",
        )
        # The release's files say nothing of the run: they are the released model's, with 512 rows of condition.
        parts[1].set_tokenizer_option("umt5xxl_min_length", 32)
        found[name] = distance(whole, generated(parts))
    return found


def wrong_use() -> dict[str, str]:
    """Every mistake that a node can be asked to make, and what it says."""
    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae)
    other = bridge.load_network(checkpoint("another", torch.float32), "default", None)
    folder_of_models = model_folder()
    tensors = comfy.utils.load_torch_file(bridge.file_path("checkpoint", bridge.EMBEDDED))
    prefix = keys.ENCODER_PREFIX
    encoder = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    comfy.utils.save_torch_file(
        {**encoder, "spiece_model": tensors[keys.TOKENIZER_KEY]},
        str(model_folder("text_encoders") / "narrow.safetensors"),
    )
    comfy.utils.save_torch_file(encoder, str(model_folder("text_encoders") / "no_tokenizer.safetensors"))
    vae_path = model_folder("vae") / "not_a_vae.safetensors"
    comfy.utils.save_torch_file({"x": torch.ones(2)}, str(vae_path))
    (folder_of_models / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 not json at all")
    folder_paths.filename_list_cache.clear()
    prompt = {"clip": clip}
    long = " ".join(["circle"] * 60)
    positive, negative = run("UniViGUTextEncode", text="a red circle", **prompt)[0], conditioning(3, width=128)
    caption = {"model": model, "clip": clip, "latent": latent, **CAPTIONING}
    sampler = {"seed": 0, "steps": 2, "guidance": 1.0, "shift": 3.0, "denoise": 1.0}
    sampler |= {"sampler": "euler", "scheduler": "uniform"}
    stock = {"seed": 0, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    into_folder = {"model": model, "clip": clip, "vae": vae, "subfolders": True, "overwrite": False, "prefix": ""}
    into_folder |= {"template": "", **SIZE, **CAPTIONING}
    batch = {"samples": torch.cat([latent["samples"]] * 2)}
    broken = Path(folder_paths.get_temp_directory()) / "broken"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "clip.mp4").write_bytes(b"no video")
    black = torch.zeros(9, 48, 48, 3)
    no_record = bridge.GeneratedText(torch.zeros(1, 4, dtype=torch.long))
    video = {"samples": torch.zeros(1, 16, 3, 6, 6)}
    cases: dict[str, Callable[[], Any]] = {
        "checkpoint is a LoRA or VAE": lambda: bridge.load_network(str(vae_path), "default", None),
        "checkpoint is broken": lambda: load_embedded(checkpoint="broken.safetensors"),
        "checkpoint carries no text encoder": lambda: load_embedded(checkpoint=Path(checkpoint("another")).name),
        "checkpoint is gone": lambda: load_embedded(checkpoint="gone.safetensors"),
        "text encoder is gone": lambda: load_embedded(text_encoder="gone.safetensors"),
        "VAE is gone": lambda: load_embedded(vae="gone.safetensors"),
        "text encoder of another width": lambda: load_embedded(
            checkpoint=Path(checkpoint("another")).name, text_encoder="narrow.safetensors", vae="not_a_vae.safetensors"
        ),
        "text encoder without tokenizer": lambda: load_embedded(text_encoder="no_tokenizer.safetensors"),
        "not a VAE": lambda: load_embedded(vae="not_a_vae.safetensors"),
        "overlong prompt": lambda: run("UniViGUTextEncode", text=long, **prompt),
        "overlong stream": lambda: run("UniViGUTextEncode", text="a circle", stream_text=long, **prompt),
        "no CLIP": lambda: run("UniViGUTextEncode", clip=None, text="a circle"),
        "too few steps for the scheduler": lambda: run(
            "UniFlowSampler", model=model, positive=positive, negative=negative, latent=video,
            **{**sampler, "steps": 1, "scheduler": "kl_optimal"},
        ),
        "prompt of another width": lambda: run(
            "UniFlowSampler", model=other, positive=positive, negative=negative, latent=empty(), **sampler
        ),
        "latent of another model": lambda: run(
            "UniFlowSampler", model=model, positive=positive, negative=negative,
            latent={"samples": torch.zeros(1, 4, 8, 8)}, **sampler,
        ),
        "latent of another model, caption": lambda: run(
            "VideoToTextDenoise", **{**caption, "latent": {"samples": torch.zeros(1, 4, 8, 8)}}
        ),
        "latent of another model, stock sampler": lambda: run(
            "KSampler", model=model, positive=positive, negative=negative,
            latent_image={"samples": torch.ones(1, 48, 3, 6, 6)}, **stock,
        ),
        "two streams, discrete flow": lambda: run(
            "KSampler", model=model, positive=positive, negative=negative,
            latent_image={"samples": bridge.nested(video["samples"], torch.zeros(1, 192, 4))}, **stock,
        ),
        "template without blanks": lambda: run("VideoToTextDenoise", template="a red circle", **caption),
        "template does not fit": lambda: run("VideoToTextDenoise", template=f"{long} ___", **caption),
        "template for two clips": lambda: run(
            "VideoToTextDenoise", template="a ___", **{**caption, "latent": batch}
        ),
        "no text to rank": lambda: run(
            "UniViGURankCaptions", model=model, clip=clip, latent=latent, texts=" \n ", samples=1, seed=0
        ),
        "zero frames": lambda: encode(video=torch.zeros(0, 48, 48, 3), vae=vae, **SIZE),
        "off the grid": lambda: encode(video=black, vae=vae, **{**SIZE, "frames": 8}),
        "images have no rate": lambda: encode(video=black, vae=vae, **{**SIZE, "fps": 8.0}),
        "a folder without clips": lambda: run("UniViGUCaptionFolder", folder=str(folder_of_models), **into_folder),
        "nothing could be captioned": lambda: run("UniViGUCaptionFolder", folder=str(broken), **into_folder),
        "no folder": lambda: run("UniViGUCaptionFolder", folder=" ", **into_folder),
        "beyond the clips": lambda: run(
            "UniViGUCaptionFolder", folder=folder_paths.get_input_directory(), start=100.0, seconds=2.0, **into_folder
        ),
        "endless temperature": lambda: run("VideoToTextDenoise", **{**caption, "temperature": float("-inf")}),
        "endless strength": lambda: run(
            "UniViGULoraLoader", model=model, lora="none", strength_video=float("inf"), strength_text=1.0
        ),
        "too long": lambda: run("VideoToTextDenoise", **{**caption, "length": 10_000}),
        "nothing to split": lambda: run("UniViGUSplitLatent", model=model, latent=video),
        "nothing was recorded": lambda: run("UniViGUTrajectory", text=no_record, clip=clip),
    }  # fmt: skip
    return {name: message(act) for name, act in cases.items()}


def preview_colours() -> list[list[int]]:
    """The stock latent preview of the sample clips: at the middle of the object and in a corner, RGB."""
    model, _, vae = load_embedded()
    format_ = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(format_.latent_rgb_factors, format_.latent_rgb_factors_bias)
    latent, _ = sample_latent(vae)
    picture = previewer.decode_latent_to_preview(model.model.process_latent_in(latent["samples"]))
    return [list(picture.getpixel(place)) for place in ((1, 2), (5, 5))]


def not_a_number() -> list[str]:
    """Black frames in the making: what each sampler says."""
    broken = bridge.load_network(checkpoint("nan", torch.float32), "default", None)
    broken.model.diffusion_model.head.head.bias.fill_(torch.nan)
    given = {"model": broken, "positive": conditioning(2), "negative": conditioning(3), "latent": empty()}
    recipe = {"seed": 0, "steps": 2, "guidance": 1.0, "shift": 3.0}
    return [
        message(lambda: run("UniFlowSampler", **given, **recipe, sampler="euler", scheduler="uniform", denoise=1.0)),
        message(lambda: run("JointSampler", **given, **recipe, text_length=4)),
    ]


async def without_a_package() -> dict[str, Any]:
    """What is left of the pack, and what is logged, where a package does not import."""
    registration = pack_module("nodes")
    kept, said = registration.import_module, io.StringIO()

    def import_module(name: str, package: str) -> Any:
        if name == ".video":
            raise ImportError("No module named 'av'")
        return kept(name, package)

    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    registration.import_module = import_module
    try:
        left = await registration.UniViGUExtension().get_node_list()
    finally:
        registration.import_module = kept
        logging.getLogger().removeHandler(handler)
    return {"left": [cls.GET_SCHEMA().node_id for cls in left], "said": said.getvalue().splitlines()}


def errors_for_clients() -> dict[str, Any]:
    """Errors of all kinds in a node: what clients are told, and whether ComfyUI can log them."""
    import traceback

    base, half = folder_paths.get_input_directory(), "caf\udce9"

    def chained() -> None:
        try:
            raise ValueError(f"{base}/{half}")
        except ValueError as error:
            raise RuntimeError(f"at {base}/clip.mp4") from error

    class Odd(Exception):
        def __str__(self) -> str:
            return f"{base}/{half}"

    def odd_below() -> None:
        try:
            raise Odd
        except Odd:
            raise KeyError("fine")  # noqa: B904 (the chain is what is tested)

    def throw(error: BaseException) -> Callable[[], None]:
        def act() -> None:
            raise error

        return act

    acts = {
        "plain": throw(ValueError(f"{base}/{half}\x1b[31m")),
        "a file": throw(FileNotFoundError(2, "No such file", f"{base}/{half}")),
        "names like roots": throw(ValueError(f"{base}{Path.home()}{tempfile.gettempdir()}/x, {Path.home()}/x")),
        "chained": chained,
        "odd": throw(Odd()),
        "odd below": odd_below,
        "unicode": throw(UnicodeEncodeError("utf-8", half, 3, 4, "surrogates not allowed")),
        "memory": throw(torch.OutOfMemoryError(f"{base} is full")),
        "cancelled": throw(comfy.model_management.InterruptProcessingException()),
    }
    found = {}
    for name, act in acts.items():
        try:
            with pack_module("nodes.comfy.errors").for_clients():
                act()
        except BaseException as error:
            traceback.format_exc().encode()  # raises where ComfyUI's log would
            found[name] = f"{type(error).__name__}: {error}"
    return found


def growth() -> dict[str, Any]:
    """Objects and memory over many runs of every job."""
    import gc

    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae)
    (positive,) = run("UniViGUTextEncode", clip=clip, text="a red circle")
    (negative,) = run("UniViGUTextEncode", clip=clip, text="")
    start = {"samples": torch.zeros(1, 16, 3, 6, 6)}

    def once(seed: int) -> None:
        run("VideoToTextDenoise", model=model, clip=clip, latent=latent, **{**CAPTIONING, "seed": seed, "steps": 4})
        run(
            "JointSampler", model=model, positive=positive, negative=negative, latent=start, text_length=0, seed=seed,
            steps=3, guidance=3.0, shift=3.0,
        )  # fmt: skip

    def tensors() -> int:
        gc.collect()
        return sum(torch.is_tensor(o) for o in gc.get_objects())

    once(0)
    once(1)
    before = tensors(), len(comfy.model_management.current_loaded_models)
    for seed in range(12):
        once(seed)
    return {"before": before, "after": (tensors(), len(comfy.model_management.current_loaded_models))}


def filmed() -> dict[str, Any]:
    """Caption Shots in parts of equal length: of a file, a part of it and frames in memory; stopped; without the
    detector."""
    import sys

    model, clip, vae = load_embedded()
    film = InputImpl.VideoFromFile(str(Path(folder_paths.get_input_directory()) / "uvg_film.mp4"))
    module, unique = pack_module("nodes.film"), {"temperature": 0.0}
    given = {**CAPTIONING, **unique, "width": 0, "height": 0, "frames": 0, "shortest": 1.0, "filename_prefix": "film"}

    def caption(video: Any, **inputs: Any) -> Any:
        return run("UniViGUCaptionShots", model=model, clip=clip, vae=vae, video=video, **{**given, **inputs})

    def facts(video: Any, **inputs: Any) -> dict[str, Any]:
        captions, text, thumbnails, file = caption(video, **{"every": 2.125, "format": "json", **inputs})
        rows = json.loads(Path(saved(file)).read_text("utf-8"))
        times = [[row["start"], row["end"]] for row in rows]
        same = captions == [row["caption"] for row in rows] == [line.split("\t")[1] for line in text.splitlines()]
        return {"captions": captions, "times": times, "same": same, "thumbnails": list(thumbnails.shape)}

    found = {
        "whole": facts(film),
        "part": facts(film.as_trimmed(2.125, 4.25)),
        "memory": facts(InputImpl.VideoFromComponents(film.get_components()), every=4.25),
    }
    describe, calls = module.describe_together, list[int]()

    def cancelled(*args: Any, **options: Any) -> list[str]:
        calls.append(1)
        if len(calls) > 2:
            raise comfy.model_management.InterruptProcessingException
        return list(describe(*args, **options))

    with (
        mock.patch.object(module, "describe_together", cancelled),
        mock.patch.object(module, "clips_at_once", return_value=1),
    ):
        try:
            caption(film, every=2.125, format="csv", filename_prefix="stopped")
        except comfy.model_management.InterruptProcessingException:
            found["stopped"] = Path(saved("output/stopped_00001_.csv")).read_text("utf-8").splitlines()
    with mock.patch.dict(sys.modules, {"scenedetect": None}):
        found["no detector"] = message(lambda: caption(film, every=0.0, format="srt"))
    found["outside"] = message(lambda: caption(film, every=2.0, format="srt", filename_prefix="../film"))
    return found


def schemas() -> dict[str, Any]:
    """What ComfyUI tells the front end about our nodes: ids, names, widget order."""
    found = {}
    for name, cls in sorted(nodes.NODE_CLASS_MAPPINGS.items()):
        if "Uni-ViGU" not in str(getattr(cls, "RELATIVE_PYTHON_MODULE", "")):
            continue
        schema = cls.GET_SCHEMA()
        found[name] = {
            "display_name": schema.display_name,
            "inputs": [i.id for i in schema.inputs],
            "outputs": [o.io_type for o in schema.outputs],
        }
    return json.loads(json.dumps(found))


def checked() -> dict[str, Any]:
    """Check Uni-ViGU on the embedded model, loaded in the wrong latent space: what it says, how the MODEL that it gives
    runs, and what is written into its file."""
    right, clip, vae = load_embedded()
    wrong = load_embedded(latent_space="raw")[0]
    pack_module("uvg_core.pipeline.check").thoroughness = lambda large: {"draws": 2, "at_once": 8}
    judged, report = run("UniViGUCheck", model=wrong, clip=clip, vae=vae)
    (positive,) = run("UniViGUTextEncode", clip=clip, text=SAMPLE)
    (negative,) = run("UniViGUTextEncode", clip=clip, text="")

    def sampled(model: Any) -> torch.Tensor:
        (out,) = run(
            "UniFlowSampler", model=model, positive=positive, negative=negative,
            latent={"samples": torch.zeros(1, 16, 3, 6, 6)}, seed=0, steps=3,
            guidance=3.0, shift=3.0, sampler="euler", scheduler="uniform", denoise=1.0,
        )  # fmt: skip
        return out["samples"]

    # Neither is loaded now: what Check has found is put on the model only as it is.
    comfy.model_management.unload_all_models()
    training, showing = pack_module("nodes.comfy.training"), pack_module("nodes.comfy.showing")
    pixels = (255 * torch.rand(1, 9, 48, 48, 3, generator=torch.Generator().manual_seed(0))).byte()
    encode = [training.encoders(m, clip, vae, m.model.run_facts).latent(pixels) for m in (judged, right)]
    with mock.patch.object(latent_preview, "get_previewer", lambda device, space: previews.append(type(space))):
        previews: list[Any] = []
        for model in (judged, right):
            showing.preview_of(model, 1)
    expected = sampled(right)
    found = {
        "trained in": distance(*encode),
        "previewed in": previews[0] is previews[1],
        "report": report,
        "judged": distance(expected, sampled(judged)),
        "wrong": distance(expected, sampled(wrong)),
    }
    (file,) = run("UniViGUSave", model=judged, filename_prefix="checked", dtype="as loaded")
    config = pack_module("uvg_core.checkpoint").read_config(saved(file))
    found["file"] = [config.model.latent_space, config.run.text_states, config.run.checked]
    (file,) = run("UniViGUSave", model=wrong, filename_prefix="unchecked", dtype="as loaded")
    found["unchecked"] = pack_module("uvg_core.checkpoint").read_config(saved(file)).model.latent_space
    release = load_embedded(text_states="release")[1]
    found["release"] = message(lambda: run("UniViGUCheck", model=right, clip=release, vae=vae))
    return found


def captioned() -> dict[str, Any]:
    """Save Captioned Video: of a file, a part of it, frames and another container; the files, what is in them, and what
    the front end is told."""
    import av
    from comfy.cli_args import args
    from comfy_api.latest import io as api

    caption = "a large red circle"
    node = node_class("UniViGUSaveCaptionedVideo")
    source = Path(folder_paths.get_input_directory()) / "uvg_sample.mp4"
    prompt, extra = {"1": {"class_type": "X"}}, {"workflow": {"id": "w"}}

    def save(video: Any, **inputs: Any) -> Any:
        hidden = {api.Hidden.unique_id: "1", api.Hidden.prompt: prompt, api.Hidden.extra_pnginfo: extra}
        given = {"filename_prefix": "captioned/clip", "txt": True, "srt": True, "caption": caption, **inputs}
        return node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden}).execute(video=video, **given)

    def packets(path: Any) -> list[Any]:
        with av.open(str(path)) as file:
            return [(bytes(one), one.pts, one.dts) for one in file.demux(file.streams.video[0]) if one.size]

    def facts(out: Any) -> dict[str, Any]:
        path = Path(saved(out.args[1]))
        with av.open(str(path)) as file:
            words = [one for stream in file.streams.subtitles for one in file.demux(stream)]
            texts = [piece.ass.decode().split(",", 8)[-1] for one in words for piece in one.decode()]
            end = max((float((one.pts + one.duration) * one.time_base) for one in words if one.size > 2), default=0.0)
            tags = {name.lower(): value for name, value in file.metadata.items()}
        beside = sorted(one.suffix for one in path.parent.glob(f"{path.stem}.*"))
        kept = {name: tags.get(name) for name in ("title", "comment", "prompt", "workflow")}
        return {"file": out.args[1], "texts": texts, "end": end, "tags": kept, "beside": beside, "ui": out.ui}

    clip = sample_clip()
    whole = save(clip)
    again = save(clip, tags=False, subtitles=False, txt=False, srt=False)
    part = save(clip.as_trimmed(0.5, 0.5))
    frames = save(InputImpl.VideoFromComponents(clip.get_components()), filename_prefix="captioned/frames")
    memory = save(InputImpl.VideoFromFile(io.BytesIO(source.read_bytes())), caption="", filename_prefix="memory")
    with mock.patch.object(args, "disable_metadata", True):
        private = save(clip, filename_prefix="captioned/private")
    return {
        **{name: facts(out) for name, out in locals().items() if isinstance(out, api.NodeOutput)},
        "unchanged": [packets(saved(out.args[1])) == packets(source) for out in (whole, again, private, memory)],
        "frames in the part": len(packets(saved(part.args[1]))),
        "passed on": whole.args[0] is clip,
        "srt": Path(saved(whole.args[1])).with_suffix(".srt").read_text(),
        "refused": [
            message(lambda prefix=prefix: save(clip, filename_prefix=prefix))
            for prefix in ("../out", "/tmp/out", "", "a\x1bb")
        ],
    }


def joint_keeps() -> dict[str, Any]:
    """Joint Sampler with core's Set Latent Noise Mask: what is black is kept, what cannot be is refused."""
    model, _, vae = load_embedded()
    encoded, _ = sample_latent(vae)
    video = encoded["samples"]
    text = conditioning(2, width=bridge.network_of(model).config.text_dim)

    def sample(latent: Any, **changes: Any) -> Any:
        given = {"seed": 1, "steps": 3, "guidance": 2.0, "shift": 3.0, "text_length": 0, **changes}
        return run("JointSampler", model=model, positive=text, negative=text, latent=latent, **given)

    def masked(mask: Any, samples: Any = encoded) -> Any:
        return run("SetLatentNoiseMask", samples=samples, mask=mask)[0]

    def kept(out: Any) -> list[float]:
        return [distance(out[0]["samples"][:, :, n], video[:, :, n]) for n in range(video.shape[2])]

    white = torch.ones(9, 48, 48)
    first, latent_frames, corner = white.clone(), torch.ones(3, 6, 6), torch.ones(1, 48, 48)
    first[0] = 0
    latent_frames[:2] = 0
    corner[:, :20, :20] = 0  # two places and a half: what half of is free is free
    size = sample(encoded)
    at_corner = sample(masked(corner))[0]["samples"]
    return {
        "size only": [distance(size[0]["samples"], sample({"samples": torch.zeros_like(video)})[0]["samples"])],
        "white": [distance(sample(masked(white))[0]["samples"], size[0]["samples"])],
        "first frame": kept(sample(masked(first))),
        "two of the latent": kept(sample(masked(latent_frames))),
        "corner": [
            distance(at_corner[..., :2, :2], video[..., :2, :2]),
            float((at_corner[..., 2, :] - video[..., 2, :]).abs().min()),
        ],
        "whole": message(lambda: sample(masked(torch.zeros(1, 48, 48)))),
        "odd": message(lambda: sample(masked(torch.zeros(5, 48, 48)))),
        "empty": message(lambda: sample(masked(first, {"samples": torch.zeros_like(video)}))),
        "nested": message(lambda: sample({"samples": bridge.nested(video, torch.zeros(1, 64, 5))})),
    }


def pictures_at_the_ends() -> dict[str, Any]:
    """Empty Uni-ViGU Latent with pictures: what the samplers keep of them, and what is refused."""
    model, _, vae = load_embedded()
    images = sample_clip().get_components().images
    encoded, _ = encode(video=images, vae=vae, **SIZE)
    text = conditioning(2, width=bridge.network_of(model).config.text_dim)
    sizes = {"width": 0, "height": 0, "frames": 0, "text_length": 0, "batch_size": 1}

    def empty_with(**changes: Any) -> Any:
        return run("UniViGUEmptyLatent", **{"model": model, "vae": vae, **sizes, **changes})

    def held(latent: Any) -> list[float]:
        return latent["noise_mask"][0, 0].amax((1, 2)).tolist()

    latent, *_ = empty_with(start_image=images[:1])
    both, *_ = empty_with(start_image=images[:1], end_image=images[-1:])
    given = {"seed": 1, "steps": 2, "guidance": 2.0, "shift": 3.0}
    core_widgets = {"sampler": "euler", "scheduler": "uniform", "denoise": 1.0}
    ours = {"model": model, "positive": text, "negative": text, "latent": latent, **given}
    made = {
        "Joint Sampler": run("JointSampler", **ours, text_length=0)[0]["samples"],
        "Uni-Flow Sampler": run("UniFlowSampler", **ours, **core_widgets)[0]["samples"],
        "KSampler": sampled(model, text, text, latent, steps=2),
    }
    twice = empty_with(start_image=images[:1], batch_size=2)[0]
    stream = embedding_latent(vae, images[:1])
    there = bridge.streams_of(stream)[0]
    return {
        "no pictures": sorted(empty_with()[0]),
        "mask": held(latent),
        "both": held(both),
        "several": held(empty_with(start_image=images[:6])[0]),
        "a tail": held(empty_with(end_image=images[:9], frames=17)[0]),
        "as encoded": distance(latent["samples"][:, :, 0], encoded["samples"][:, :, 0]),
        "kept": {name: distance(out[:, :, 0], latent["samples"][:, :, 0]) for name, out in made.items()},
        "formed": {name: float(out[:, :, 1:].abs().max()) > 0.1 for name, out in made.items()},
        "batch": list(sampled(model, text, text, twice, steps=1).shape),
        "stream": [stream["noise_mask"].ndim, distance(there[:, :, 0], latent["samples"][:, :, 0])],
        "no vae": message(lambda: empty_with(start_image=images[:1], vae=None)),
        "all": message(lambda: empty_with(start_image=images[:9])),
    }


def embedding_latent(vae: Any, image: Any) -> dict[str, Any]:
    """The latent of a checkpoint with two streams that begins with a picture."""
    path = checkpoint("ends", torch.float32, {"text_length": 5}, text_flow="embedding")
    model = bridge.load_network(path, "default", None)
    sizes = {"width": 48, "height": 48, "frames": 9, "text_length": 0, "batch_size": 1}
    return run("UniViGUEmptyLatent", model=model, vae=vae, start_image=image, **sizes)[0]


EDIT = {"caption": "", "change": "", "new_caption": "", "strength": 0.95, "seed": 0, "steps": 4, "guidance": -1.0}
EDIT |= {"shift": 0.0}


def edited() -> dict[str, Any]:
    """Edit by Words on the sample clip: what it gives, what a mask, a long clip and plain Wan change, and how it is
    refused."""
    model, clip, vae = load_embedded()
    latent, _ = sample_latent(vae, fps=-1.0)
    before = latent["samples"]
    long, _ = sample_latent(vae, frames=17)

    def edit(**changes: Any) -> Any:
        given = {"model": model, "clip": clip, "latent": latent, **EDIT, "change": "red=blue", **changes}
        return run("UniViGUEdit", **given)

    def samples(**changes: Any) -> Any:
        return edit(**changes)[0]["samples"]

    def colours(both: Any) -> list[list[int]]:
        """RGB at the middle of the object in the middle frame, of either side."""
        middle = (both[4] * 255).round()
        sides = middle[:, :48], middle[:, -48:]
        return [[int(value) for value in side[24, 24]] for side in sides]

    left, strip = torch.zeros(1, 96, 96), torch.zeros(1, 48, 48)
    left[..., :48] = 1
    strip[..., :8] = 1
    latent_masked = run("SetLatentNoiseMask", samples=latent, mask=left)[0]
    once, both, caption, new = edit(vae=vae, steps=0)
    again = samples(steps=0)
    kept, weak = samples(mask=left), samples(strength=0.3)
    wan = plain_wan(bridge.file_path("checkpoint", EMBEDDED))
    by_core = {"caption": SAMPLE, "model": wan, "guidance": 5.0, "shift": 3.0}
    two = {"samples": torch.cat([before] * 2)}
    none = {"samples": torch.zeros_like(before)}
    wide = torch.ones(1, 48, 96)
    return {
        "words": [caption, new],
        "said": said_by("UniViGUEdit", model=model, clip=clip, latent=latent, **{**EDIT, "new_caption": "a blue star"}),
        "both": [list(both.shape), *colours(both)],
        "again": distance(once["samples"], again),
        "other seed": distance(samples(), samples(seed=1)),
        "strength": [distance(weak, before), distance(samples(), before), distance(samples(strength=0.0), before)],
        "mask": [distance(kept[..., 3:], before[..., 3:]), distance(kept[..., :3], before[..., :3])],
        "mask of the latent": distance(kept, samples(latent=latent_masked)),
        "negative": distance(samples(negative=run("UniViGUTextEncode", clip=clip, text="")[0]), samples()),
        "long": list(samples(latent=long).shape),
        "draws": distance(samples(draws=2), samples()),
        "wan": [distance(samples(**by_core), before), distance(samples(**by_core), samples(caption=SAMPLE))],
        "no picture": type(edit(steps=1)[1]).__name__,
        "no words": message(lambda: edit(change=" ")),
        "other words": message(lambda: edit(change="green=blue")),
        "no change": message(lambda: edit(change="red")),
        "same words": message(lambda: edit(change="", new_caption=SAMPLE)),
        "both ways": message(lambda: edit(new_caption="a star")),
        "two clips": message(lambda: edit(latent=two)),
        "empty": message(lambda: edit(latent=none)),
        "wide mask": message(lambda: edit(mask=wide)),
        "black mask": message(lambda: edit(mask=torch.zeros(1, 48, 48))),
        "frames of a mask": message(lambda: edit(mask=torch.ones(5, 48, 48))),
        "latent of another model": message(lambda: edit(latent={"samples": torch.ones(1, 4, 8, 8)})),
        "plain Wan writes nothing": message(lambda: edit(model=wan)),
        "no such strength": message(lambda: edit(strength=1.5)),
        "long words": message(lambda: edit(change="red=" + "circle " * 40)),
    }


def sliced() -> dict[str, Any]:
    """Core's Trim Video in front of Encode Video: what core shows of a part, and what is read of it."""
    media, video = pack_module("nodes.media"), pack_module("uvg_core.media.video")
    _, _, vae = load_embedded()
    spec = video.ClipSpec(100, 48, 48)
    found: dict[str, Any] = {"shown": [], "read": [], "known": [], "alike": []}

    def trimmed(clip: Any, start: float, seconds: float, strict: bool = True) -> Any:
        return run("Video Slice", video=clip, start_time=start, duration=seconds, strict_duration=strict)[0]

    def look(part: Any) -> None:
        images = part.get_components().images
        pixels, note = media.read(part, spec)
        seen = "1" if "a single frame" in note else note.split(" frames out of only ")[1].split(",")[0]
        found["shown"].append(len(images))
        found["read"].append(int(seen))
        found["known"].append(media.info_of(part).frames)
        ends = [float((images[n].mean() * 255 - pixels[n].float().mean()).abs()) for n in (0, -1)]
        found["alike"].append(max(ends) < 3)  # a frame differs from the next by 6

    with tempfile.TemporaryDirectory() as folder:
        for rate in (29.97, 24.0, 8.0):
            path = Path(folder) / f"{rate}.mp4"
            shades = torch.arange(40, dtype=torch.uint8).mul(6)[:, None, None, None]
            video.write_video(path, shades.expand(-1, 48, 48, 3), rate)
            clip = InputImpl.VideoFromFile(str(path))
            for start, frames in ((0.0, 4), (0.1, 4), (0.333, 4), (0.5, 1), (-0.5, 3)):
                look(trimmed(clip, start, round(frames / rate, 3)))
            look(trimmed(trimmed(clip, 0.25, 0.0), 0.25, 0.5))  # a part of a part
            look(trimmed(clip, 1.0, 0.0, strict=False))  # to the end
        four, note = encode(video=trimmed(clip, 0.5, 0.5), vae=vae, **{**SIZE, "frames": 81})
        five, more = encode(video=trimmed(clip, 0.5, 0.625), vae=vae, **{**SIZE, "frames": 81})
        memory = InputImpl.VideoFromComponents(clip.get_components())
        look(trimmed(memory, 0.5, 0.5))
        end = media.read(clip.as_trimmed(4.99, 0.0), spec)[1]  # the last frame is still on screen
    return {
        **found,
        "notes": [note, more],
        "latents": [four["samples"].shape[2], five["samples"].shape[2]],
        "end": end,
    }


def sizes_saved() -> dict[str, Any]:
    """Save as loaded: what each file holds a kind of weights in, before and after, also with a LoRA; and what is read
    back of it."""
    from safetensors.torch import load_file, save_file

    source = checkpoint("sizes", torch.float32)
    folder, out = model_folder(), Path(folder_paths.get_output_directory())
    blocks = ("self_attn.q.weight", "ffn.0.weight")

    def written(name: str, dtype: Any) -> str:
        """A file whose weights of the text half are in fp16, and the others in ``dtype``; of fp8 the matrices only."""
        path = folder / f"sizes_{name}.safetensors"
        if isinstance(dtype, str):
            core.convert(source, path, dtype=dtype)
            return str(path)
        eight = dtype == torch.float8_e4m3fn
        core.convert(source, path, dtype="bf16")
        tensors = {
            key: tensor.half() if "ffn_t" in key else tensor.to(dtype) if not eight or key.endswith(blocks) else tensor
            for key, tensor in load_file(path).items()
        }
        facts = core.read_config(path)
        save_file(tensors, path, metadata={"config": facts.to_json()})
        return str(path)

    def held(path: Any) -> dict[str, str]:
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in load_file(path).items()}

    lora = model_folder("loras") / "sizes.safetensors"
    up, down = torch.ones(64, 1), torch.ones(1, 64)
    layer = "diffusion_model.blocks.0.self_attn.q"
    comfy.utils.save_torch_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, str(lora))
    found: dict[str, Any] = {"same": {}, "apart": {}, "lora": {}, "lora apart": {}}
    kinds = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "half": torch.bfloat16, "plain fp8": torch.float8_e4m3fn}
    for name, dtype in kinds.items():
        path = written(name, dtype)
        model = bridge.load_network(path, "default", None)
        before = core.load_model(path, dtype=torch.float32).state_dict()
        bridge.save_checkpoint(out / "sizes.safetensors", model, None, None)
        after = core.load_model(out / "sizes.safetensors", dtype=torch.float32).state_dict()
        found["same"][name] = held(out / "sizes.safetensors") == held(path)
        found["apart"][name] = max(distance(after[key], before[key]) for key in before)
        bridge.load_network(str(out / "sizes.safetensors"), "default", None)
        (patched, _) = run("UniViGULoraLoader", model=model, lora=lora.name, strength_video=1.0, strength_text=1.0)
        bridge.save_checkpoint(out / "sizes.safetensors", patched, None, None)
        grown = (out / "sizes.safetensors").stat().st_size - Path(path).stat().st_size
        changed = core.load_model(out / "sizes.safetensors", dtype=torch.float32).state_dict()
        found["lora"][name] = grown
        key = "blocks.0.self_attn.q.weight"
        found["lora apart"][name] = distance(changed[key], before[key] + 1)
    eight = bridge.load_network(written("bf16", "bf16"), "fp8_e4m3fn", None)
    bridge.save_checkpoint(out / "sizes.safetensors", eight, None, None)
    found["loaded in fp8"] = (out / "sizes.safetensors").stat().st_size / (
        folder / "sizes_bf16.safetensors"
    ).stat().st_size
    wide = bridge.load_network(str(folder / "sizes_bf16.safetensors"), "fp32", None)
    bridge.save_checkpoint(out / "sizes.safetensors", wide, None, None)
    found["loaded in fp32"] = sorted(set(held(out / "sizes.safetensors").values()))
    model, clip, vae = load_embedded()
    bridge.save_checkpoint(out / "sizes.safetensors", model, clip, vae)
    embedded = bridge.file_path("checkpoint", EMBEDDED)
    found["whole"] = held(out / "sizes.safetensors") == held(embedded)
    return found


def samples_offered(path: str) -> dict[str, Any]:
    """The sample clips in input folders of their own: at the first start, later, and where nothing can be written."""
    samples = pack_module("nodes.comfy.samples")
    base, found = Path(path), dict[str, Any]()
    home, user = base / "input", base / "user"

    def start(home: Path = home, user: Path = user, copied: tuple[str, ...] = samples.COPIED) -> list[str]:
        with (
            mock.patch.object(folder_paths, "get_input_directory", return_value=str(home)),
            mock.patch.object(folder_paths, "get_user_directory", return_value=str(user)),
            mock.patch.object(samples, "COPIED", copied),
        ):
            samples.offer_samples()
        return sorted(one.relative_to(home).as_posix() for one in home.rglob("*") if one.is_file())

    first, *rest = samples.COPIED
    (home / first).parent.mkdir(parents=True)
    (home / first).write_bytes(b"somebody's own")
    found["first"] = start(copied=(first, *rest[:-1]))
    found["own"] = (home / first).read_bytes() == b"somebody's own"
    (home / rest[0]).unlink()
    found["again"] = start(copied=(first, *rest[:-1]))
    found["upgraded"] = start()
    found["other folder"] = start(home=base / "other")
    notes = next(user.iterdir())
    notes.write_text("no notes", encoding="utf-8")
    found["spoiled"] = start()

    closed = base / "closed"
    closed.write_text("not a folder", encoding="utf-8")
    start(home=closed)
    closed.unlink()
    found["later"] = start(home=closed)
    (base / "file").write_text("not a folder", encoding="utf-8")
    found["no notes"] = start(home=base / "unknown", user=base / "file")

    model, clip, vae = load_embedded()
    given = {"model": model, "clip": clip, "folder": "uvg_training_clips/", "subfolders": True}
    videos, prompts, details, _ = run("UniViGULoadClips", **given, need_details=True, frames=0)
    found["training"] = [len(videos), len(prompts), len(details), media_frames(videos[0])]
    found["state"] = node_class("UniViGULoadClips").fingerprint_inputs(**given) != node_class(
        "UniViGULoadClips"
    ).fingerprint_inputs(**{**given, "folder": "nothing"})
    caption = {**CAPTIONING, "length": 4, "steps": 1, **SIZE, "overwrite": True, "prefix": "", "template": ""}
    found["written into"] = message(lambda: run("UniViGUCaptionFolder", vae=vae, **given, **caption))
    return found


def media_frames(video: Any) -> int:
    return int(pack_module("nodes.media").info_of(video).frames)
