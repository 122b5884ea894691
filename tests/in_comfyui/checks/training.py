"""What ``test_training`` asks: Load Training Clips and Train Uni-ViGU inside ComfyUI."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from check_made import (
    bridge,
    checkpoint,
    core,
    distance,
    is_text_weight,
    load_embedded,
    message,
    model_folder,
    run,
    said_by,
    saved,
)
from comfy_api.latest import InputImpl, Types
from worker import node_class, pack_module

SETTINGS = {
    "stage": "recall",
    "trains": "lora",
    "steps": 4,
    "batch": 4,
    "learning_rate": 1e-3,
    "rank": 4,
    "seed": 0,
    "sample_every": 0,
    "filename_prefix": "trained",
    "all_in_one": True,
    "accumulate": 1,
    "width": 0,
    "height": 0,
    "frames": 0,
}


def missing_packages() -> str:
    return ", ".join(name for name in ("accelerate", "peft") if importlib.util.find_spec(name) is None)


def load(parts: Any, folder: str, **changes: Any) -> Any:
    given = {"folder": folder, "subfolders": True, "need_details": False, "frames": 0, **changes}
    return run("UniViGULoadClips", model=parts[0], clip=parts[1], **given)


def train(parts: Any, clips: Any, call: Any = run, **changes: Any) -> Any:
    """Train Uni-ViGU as ComfyUI calls it: every input is a list. ``call``: ``said_by`` gives its last words."""
    widgets = {name: [value] for name, value in {**SETTINGS, **changes}.items()}
    model, clip, vae = ([part] for part in parts)
    videos, prompts, *rest = clips
    texts = {"prompts": prompts, **({"details": rest[0]} if rest else {})}
    return call("UniViGUTrain", model=model, clip=clip, vae=vae, videos=videos, **texts, **widgets)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}


def differences(before: Any, after: Any) -> list[str]:
    return [name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))]


def output_folders() -> None:
    """As main.py does: what is written there is found by the loaders."""
    for kind in ("loras", "checkpoints", "diffusion_models"):
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.get_output_directory()) / kind))
    folder_paths.filename_list_cache.clear()


@contextmanager
def said() -> Iterator[list[str]]:
    """What shows in the node meanwhile."""
    from server import PromptServer

    texts: list[str] = []
    kept = PromptServer.instance.send_progress_text
    PromptServer.instance.send_progress_text = lambda text, node_id, sid=None: texts.append(text)
    try:
        yield texts
    finally:
        PromptServer.instance.send_progress_text = kept


def both_stages(folder: str) -> dict[str, Any]:
    """A LoRA of each stage, the second on top of the first, through all of core's nodes that take one."""
    output_folders()
    parts = load_embedded()
    before = weights(parts[0])
    clips = load(parts, folder)
    with said() as texts:
        lora, loss, steps, file, samples = train(parts, clips, steps=16, batch=8, learning_rate=5e-3, sample_every=8)
    (learnt,) = run("LoraModelLoader", model=parts[0], lora=lora, strength_model=1.0, bypass=False)
    second, second_loss, *_ = train((learnt, *parts[1:]), clips, stage="refine", steps=16, batch=8, learning_rate=5e-3)
    (refined,) = run("LoraModelLoader", model=learnt, lora=second, strength_model=1.0, bypass=False)
    run("SaveLoRA", lora=lora, prefix="loras/recall", steps=steps)
    folder_paths.filename_list_cache.clear()
    saved = next(name for name in folder_paths.get_filename_list("loras") if name.startswith("recall_16_steps"))
    loaded, report = run("UniViGULoraLoader", model=parts[0], lora=saved, strength_video=1.0, strength_text=1.0)
    x, t = torch.randn(1, 16, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    networks = {"learnt": learnt, "loaded": loaded, "refined": refined, "before": parts[0]}
    seen = {}
    for name, model in networks.items():
        comfy.model_management.load_models_gpu([model])
        context = torch.zeros(1, 4, model.model.config.text_dim)
        seen[name] = model.model.apply_model(x, t, c_crossattn=context)
    comfy.model_management.load_models_gpu([parts[0]])
    plot = node_class("LossGraphNode").PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    graph = plot.execute(loss=loss, filename_prefix="loss")
    return {
        "loss": loss["loss"],
        "second loss": second_loss["loss"],
        "steps": steps,
        "file": file,
        "samples": [list(picture.shape) for picture in samples],
        "texts": texts,
        "changed": differences(before, weights(parts[0])),
        "report": report,
        "same as loaded": distance(seen["learnt"], seen["loaded"]),
        "learnt": distance(seen["learnt"], seen["before"]),
        "refined": distance(seen["refined"], seen["learnt"]),
        "graph": graph.ui is not None,
        "training mode left": parts[0].model.diffusion_model.training,
    }


def cancelled(folder: str, trains: str) -> dict[str, Any]:
    """Cancel after the third step: what was learnt lies in the output folder, and the next run is fine."""
    from server import PromptServer

    output_folders()
    parts = load_embedded()
    clips = load(parts, folder)
    texts: list[str] = []

    def show(text: str, node_id: str, sid: str | None = None) -> None:
        texts.append(text)
        if text.startswith("3/"):
            comfy.model_management.interrupt_current_processing(True)

    server, left = PromptServer.instance, []
    kept, kept_events = server.send_progress_text, server.send_sync
    server.send_sync = lambda event, data, sid=None: left.append((event, data["text"], sid))
    progress = bridge.Progress
    throttled = progress.text
    progress.text = lambda self, text, last=False: throttled(self, text, last=True)  # every one of them
    PromptServer.instance.send_progress_text = show
    prefix = f"cut/{trains}"
    try:
        train(parts, clips, steps=50, trains=trains, filename_prefix=prefix)
        outcome = "finished"
    except comfy.model_management.InterruptProcessingException:
        outcome = "interrupted"
    finally:
        progress.text = throttled
        server.send_progress_text, server.send_sync = kept, kept_events
    assert [(event, sid) for event, _, sid in left] == [("uni_vigu.said", server.client_id)]
    steps = [text for text in texts if "/50 loss " in text]
    files = sorted(Path(folder_paths.get_output_directory()).rglob(f"{prefix}_*.safetensors"))
    found: dict[str, Any] = {
        "outcome": outcome,
        "last": texts[-1],
        "left": left[0][1],
        "steps": len(steps),
        "files": len(files),
    }
    folder_paths.filename_list_cache.clear()
    if trains == "lora":
        name = str(files[0].relative_to(Path(folder_paths.get_output_directory()) / "loras"))
        _, found["report"] = run("UniViGULoraLoader", model=parts[0], lora=name, strength_video=1.0, strength_text=1.0)
    else:
        name = str(files[0].relative_to(Path(folder_paths.get_output_directory()) / "checkpoints"))
        found["report"] = len(load_embedded(checkpoint=name)) == 3
    found["after"] = train(parts, clips, call=said_by, trains=trains, steps=2)
    temp = Path(folder_paths.get_temp_directory())
    found["left in temp"] = [path.name for path in temp.glob("uni_vigu_*")]
    return found


def checkpoints(folder: str) -> dict[str, Any]:
    """``text`` into an all-in-one file, ``all`` into one of the network alone; what changed, and what loads."""
    output_folders()
    parts = load_embedded()
    clips = load(parts, folder)
    before = weights(parts[0])
    lora, _, _, file, samples = train(parts, clips, trains="text", learning_rate=1e-2, filename_prefix="text")
    folder_paths.filename_list_cache.clear()
    again = load_embedded(checkpoint=Path(file).name)
    changed = differences(before, weights(again[0]))
    *_, bare, _ = train(parts, clips, trains="all", all_in_one=False, filename_prefix="all", steps=2)
    network = core.load_model(saved(bare), dtype=torch.float32)
    pixels = torch.rand(9, 48, 48, 3, generator=torch.Generator().manual_seed(0))
    return {
        "where": [Path(path).parent.name for path in (file, bare)],
        "changed": len(changed),
        "of the video half": [name for name in changed if not is_text_weight(name)],
        "vae": distance(parts[2].encode(pixels), again[2].encode(pixels)),
        "lora": [type(lora).__name__, lora.message],
        "samples": [type(samples).__name__, samples.message],
        "all": len(differences(before, network.state_dict())),
        "MODEL": differences(before, weights(parts[0])),
    }


def on_a_lora() -> dict[str, float]:
    """The copy that learns has the LoRAs of MODEL in it; MODEL's own weights stay as they are."""
    path = checkpoint("to_train", torch.float32)
    model = bridge.load_network(path, "default", None)
    lora = model_folder("loras") / "to_train.safetensors"
    name = "diffusion_model.blocks.0.ffn_t.0"
    pair = {f"{name}.lora_A.weight": torch.ones(1, 64), f"{name}.lora_B.weight": torch.ones(96, 1)}
    comfy.utils.save_torch_file(pair, str(lora))
    (patched, _) = run("UniViGULoraLoader", model=model, lora=lora.name, strength_video=1.0, strength_text=0.5)
    training = pack_module("nodes.comfy.training")
    config = replace(pack_module("nodes.training").train_config(SETTINGS), device="cpu")
    before = weights(model)
    with torch.inference_mode(False):
        copy = dict(training.training_copy(patched, config).named_parameters())
        ready = all(not weight.is_inference() for weight in copy.values())
    comfy.model_management.load_models_gpu([model])  # both share their weights: which one is loaded decides
    place = "blocks.0.ffn_t.0.weight"
    return {
        "with it": distance(copy[place].detach(), before[place] + 0.5),
        "others": max(distance(copy[n].detach(), before[n]) for n in before if n != place),
        "MODEL": len(differences(before, weights(model))),
        "can learn": ready,
    }


def same_seed(folder: str) -> list[float]:
    """The LoRA of a seed, made twice and with another one between."""
    parts = load_embedded()
    clips = load(parts, folder)
    first, other, again = (train(parts, clips, seed=seed, steps=2, batch=2)[0] for seed in (1, 2, 1))
    return [max(distance(first[name], lora[name]) for name in first) for lora in (again, other)]


def clips_of_all_kinds(folder: str) -> dict[str, Any]:
    """Core's loader of videos and texts, its shuffle, videos in memory and parts of files."""
    parts = load_embedded()
    name = Path(folder).name
    shutil.copytree(folder, Path(folder_paths.get_input_directory()) / name, dirs_exist_ok=True)
    videos, prompts = run("LoadVideoTextDataSetFromFolder", folder=name)
    shuffled = run("ShuffleVideoTextDataset", videos=videos, texts=prompts, seed=3)
    made = [InputImpl.VideoFromComponents(video.get_components()) for video in videos]
    doubled = [
        InputImpl.VideoFromComponents(Types.VideoComponents(images=images.repeat(2, 1, 1, 1), frame_rate=8))
        for images in (video.get_components().images for video in videos)
    ]
    second = [video.as_trimmed(0.5, 0) for video in videos]
    kinds = {"core": (videos, prompts), "shuffled": shuffled, "memory": (made, prompts)}
    found = {name: len(train(parts, clips, steps=1)[1]["loss"]) for name, clips in kinds.items()}
    found["twice as long"] = len(train(parts, (doubled, prompts), steps=1)[1]["loss"])
    node, images = pack_module("nodes.training"), videos[0].get_components().images
    there_and_back = Types.VideoComponents(images=torch.cat([images, images.flip(0)]), frame_rate=4)
    clips = node.ConnectedClips(
        [InputImpl.VideoFromComponents(there_and_back)], ["a"], [""], node.sized(node.run_facts(parts[0]), node.Size())
    )
    seen = clips.item(0).pixels.float()
    found["all of it is seen"] = [float((seen[n] - seen[0]).abs().mean()) for n in (-1, len(seen) // 2)]
    found["cut"] = message(lambda: train(parts, (second, prompts), frames=9, steps=2))
    found["smaller"] = len(train(parts, (videos, prompts), frames=5, width=32, height=32, steps=1)[1]["loss"])
    return found


def loaded(folder: str) -> dict[str, Any]:
    """Load Training Clips: lists, report, what it leaves out and notices."""
    parts = load_embedded()
    cls = node_class("UniViGULoadClips")
    before = cls.fingerprint_inputs(folder=folder, subfolders=True)
    videos, prompts, details, report = load(parts, folder)
    Path(folder, "new.txt").write_text("a red circle", encoding="utf-8")
    return {
        "names": [Path(video.get_stream_source()).name for video in videos],
        "prompts": prompts,
        "details": details,
        "report": report,
        "with details": load(parts, folder, need_details=True)[2:],
        "noticed": cls.fingerprint_inputs(folder=folder, subfolders=True) != before,
    }


def parts_and_shapes(folder: str) -> dict[str, Any]:
    """A part of each clip is loaded; training reads it in the shape asked for."""
    parts, node, seen = load_embedded(), pack_module("nodes.training"), []
    videos, prompts, *_, report = load(parts, folder, start=0.5, seconds=1.25, frames=5)

    def read_video(video: Any, spec: Any) -> Any:
        seen.append(read(video, spec))
        return seen[-1]

    read, node.read_video = node.read_video, read_video
    try:
        train(parts, (videos, prompts), frames=5, steps=1)
        train(parts, (videos, prompts), frames=5, steps=1, fit="pad", crop="top", background="white", width=96)
    finally:
        node.read_video = read
    return {
        "trimmed": [video.get_active_trim_window() for video in videos],
        "notes": [note for _, note in seen],
        "corners": [float(pixels[:, :, 0].float().mean()) for pixels, _ in seen],
        "report": report,
        "too late": message(lambda: load(parts, folder, start=1.9)),
    }


def wrong_use(folder: str, broken: str) -> dict[str, str]:
    """Every mistake that training can be asked to make, and what it says. ``broken`` holds clips with one each."""
    output_folders()
    parts = load_embedded()
    videos, prompts, details, _ = clips = load(parts, folder)
    training = pack_module("nodes.comfy.training")
    source = {path.stem: InputImpl.VideoFromFile(str(path)) for path in Path(broken).glob("*.mp4")}
    other = bridge.load_network(checkpoint("another_one", torch.float32), "default", None)

    def without(package: str) -> None:
        kept = importlib.import_module

        def missing(name: str, *args: Any) -> Any:
            if name == package:
                raise ImportError(f"No module named '{name}'")
            return kept(name, *args)

        training.importlib.import_module = missing
        try:
            train(parts, clips)
        finally:
            training.importlib.import_module = kept

    def little_room() -> None:
        kept = training.shutil.disk_usage
        training.shutil.disk_usage = lambda path: kept(path)._replace(free=1000)
        try:
            train(parts, clips, trains="text")
        finally:
            training.shutil.disk_usage = kept

    cases: dict[str, Callable[[], Any]] = {
        "no caption": lambda: train(parts, (videos, ["", " ", *prompts[2:]])),
        "no details": lambda: train(parts, (videos, prompts), stage="refine"),
        "one detail is missing": lambda: train(parts, (videos, prompts, ["", *details[1:]]), stage="refine"),
        "a list of another length": lambda: train(parts, (videos, prompts[:3])),
        "unreadable": lambda: train(parts, ([source["broken"], *videos[1:]], prompts)),
        "gone": lambda: train(parts, ([InputImpl.VideoFromFile(str(Path(broken) / "gone.mp4")), *videos[1:]], prompts)),
        "too short": lambda: train(parts, ([source["short"], *videos[1:]], prompts)),
        "too long a text": lambda: train(parts, (videos, ["circle " * 60, *prompts[1:]])),
        "off the grid": lambda: train(parts, clips, frames=8),
        "a prefix that leads out": lambda: train(parts, clips, filename_prefix="../../out"),
        "text in the stage generate": lambda: train(parts, clips, stage="generate", trains="text"),
        "a CLIP of another model": lambda: train((other, *parts[1:]), clips),
        "without accelerate": lambda: without("accelerate"),
        "without peft": lambda: without("peft"),
        "little room": little_room,
        "no folder": lambda: load(parts, " "),
        "a folder without clips": lambda: load(parts, str(model_folder())),
        "nothing usable": lambda: load(parts, broken),
    }
    return {name: message(act) for name, act in cases.items()}


def facts_of_a_lora() -> list[Any]:
    """What is written into a LoRA's file beside weights, without and with ComfyUI's --disable-metadata."""
    training, written = pack_module("nodes.comfy.training"), []
    run, trainer = SimpleNamespace(config=SimpleNamespace(trains="lora", lora=None)), SimpleNamespace(card=lambda: {})
    for off in (False, True):
        with (
            mock.patch.object(training, "save_lora", lambda *given: written.append(given[-1])),
            mock.patch.object(training.args, "disable_metadata", off),
        ):
            training.TrainingRun._write_to(run, Path("lora.safetensors"), trainer, {})
    return written


def breaks_off(folder: str) -> dict[str, Any]:
    """A loss that is no number, and a disk that is full at the end: what was learnt until then is somewhere."""
    output_folders()
    parts = load_embedded()
    clips = load(parts, folder)
    training = pack_module("nodes.comfy.training")
    run_class = training.TrainingRun
    encode, save = run_class.encode, training.save_checkpoint
    found: dict[str, Any] = {}

    def poisoned(*args: Any) -> Any:
        data = encode(*args)
        read = type(data).sample

        class Poisoned(type(data)):  # type: ignore[misc]
            def sample(self, index: int, wording: float = 0.0) -> Any:
                sample = read(self, index, wording)
                return replace(sample, latent=sample.latent * float("nan")) if index == 3 else sample

        data.__class__ = Poisoned
        return data

    run_class.encode = poisoned
    try:
        found["not a number"] = message(
            lambda: train(parts, clips, batch=1, steps=40, seed=1, filename_prefix="poisoned")
        )
    finally:
        run_class.encode = encode
    folder_paths.filename_list_cache.clear()
    kept = [name for name in folder_paths.get_filename_list("loras") if name.startswith("poisoned")]
    file = Path(folder_paths.get_full_path("loras", kept[0]))
    tensors, facts = comfy.utils.load_torch_file(str(file), return_metadata=True)
    found["finite"] = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    found["step"] = json.loads(facts["uvg_training"])["step"]

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        if Path(folder_paths.get_output_directory()) in path.parents:
            raise core.UniViGUError(f"{path}: could not be written (No space left on device)")
        save(path, *args, **kwargs)

    training.save_checkpoint = full
    try:
        file = train(parts, clips, trains="text", steps=2, filename_prefix="full")[3]
    finally:
        training.save_checkpoint = save
    file = saved(file)
    found["elsewhere"] = Path(file).is_file() and "output" not in Path(file).parts
    shutil.rmtree(Path(file).parent)
    return found


def growth(folder: str) -> dict[str, Any]:
    """Tensors and loaded models over several runs."""
    import gc

    parts = load_embedded()
    clips = load(parts, folder)

    def tensors() -> int:
        gc.collect()
        return sum(torch.is_tensor(one) for one in gc.get_objects())

    train(parts, clips, steps=2, sample_every=2)
    before = tensors(), len(comfy.model_management.current_loaded_models)
    for seed in range(2):
        train(parts, clips, steps=2, seed=seed, sample_every=2)
    return {"before": before, "after": (tensors(), len(comfy.model_management.current_loaded_models))}
