"""What ``test_fake_cards`` asks: the jobs at the released size, through ComfyUI's guider, its loading and its model
management, on a CUDA card that is not there (``tests/fake_card.py``). Two blocks stand for thirty: they are all alike.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from check_made import bridge, core, load_embedded, run
from worker import pack_module

_spec = importlib.util.spec_from_file_location("fake_card", Path(__file__).parents[2] / "fake_card.py")
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
sys.modules["fake_card"] = fake
_spec.loader.exec_module(fake)

management = comfy.model_management
CUDA = torch.device("cuda", 0)
SIZE = (16, 21, 60, 104)  # a latent of 832x480, 81 frames
BLOCKS = 2


def missing() -> str:
    return fake.missing()


def _moved(module: Any, change: Callable[[Any], Any], recurse: bool = True) -> Any:
    """torch's own swaps what parameters hold, which real and fake ones do not let happen to them."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, weight in module._parameters.items():
        if weight is not None:
            module._parameters[name] = torch.nn.Parameter(change(weight), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


@contextlib.contextmanager
def on_card(memory: float = 80e9) -> Iterator[Any]:
    """ComfyUI with a fake card, on which nothing is loaded yet."""
    import worker

    pretended = worker._check_module("cards").pretended
    with contextlib.ExitStack() as inside:

        def replace(place: Any, name: str, new: Any) -> None:
            inside.enter_context(mock.patch.object(place, name, new))

        inside.enter_context(torch.inference_mode(False))  # which fake tensors do not know
        inside.enter_context(torch.no_grad())
        inside.enter_context(pretended("RTX 3060"))
        card = inside.enter_context(fake.fake_card(memory))

        def free(device: Any = None, torch_free_too: bool = False) -> Any:
            left = card.memory - card.now if torch.device(device or CUDA).type == "cuda" else 64e9
            return (left, 0) if torch_free_too else left

        replace(management, "get_total_memory", lambda *args, **kwargs: card.memory)
        replace(management, "get_free_memory", free)
        replace(management, "current_loaded_models", [])
        replace(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        replace(management, "soft_empty_cache", lambda *args, **kwargs: None)
        replace(management, "cuda_device_context", lambda device: contextlib.nullcontext())
        replace(management, "pytorch_attention_flash_attention", lambda: True)
        replace(torch.nn.Module, "_apply", _moved)
        yield card


def released(card: Any, blocks: int = BLOCKS, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A MODEL at the released width, as core's loaders would hand it over; its weights lie on the CPU, untouched."""
    model_module = pack_module("nodes.bridge.model")
    known = model_module.UniViGUConfig({"image_model": "wan2.1", "model_type": "t2v", "dim": 1536})
    known.set_inference_dtype(dtype, None)
    config = core.ModelConfig(num_layers=blocks, **{"latent_space": "raw", **changes})
    model = model_module.UniViGUModel(known, config, core.RunConfig(), device=torch.device("cpu"))
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CUDA, offload_device=torch.device("cpu"))
    attention = comfy.ldm.modules.attention.attention_pytorch
    patcher.model_options["transformer_options"]["optimized_attention_override"] = lambda _, *a, **k: attention(*a, **k)
    return patcher


def prompt(tokens: int = 60) -> list[Any]:
    return [[torch.zeros(1, 512, 4096), {bridge.TEXT_TOKENS: torch.zeros(1, tokens, dtype=torch.long)}]]


def jobs(clip: Any) -> dict[str, Callable[[Any, int], Any]]:
    """Every job of the nodes, as functions of the MODEL and the number of steps."""
    latent = {"samples": torch.zeros(1, *SIZE)}
    looked_at = {"samples": torch.ones(1, *SIZE)}
    both = {"positive": prompt(), "negative": prompt(), "latent": latent, "seed": 0, "shift": 3.0}
    video = {"guidance": 5.0, "sampler": "euler", "scheduler": "uniform", "denoise": 1.0, **both}
    words = {"length": 256, "seed": 0, "temperature": 1.0, "top_p": 1.0, "stop_when_stable": 0}

    def caption(model: Any, steps: int, **changes: Any) -> Any:
        given = {"clip": clip, "latent": looked_at, "text_update": "bridge", "record": 0, **words, **changes}
        return run("VideoToTextDenoise", model=model, steps=steps, **given)

    def joint(model: Any, steps: int, **changes: Any) -> Any:
        return run("JointSampler", model=model, steps=steps, text_length=256, guidance=5.0, record=0, **both, **changes)

    def rank(model: Any, steps: int) -> Any:
        given = {"clip": clip, "latent": looked_at, "texts": "a red\na blue", "seed": 0}
        return run("UniViGURankCaptions", model=model, samples=steps, **given)

    return {
        "t2v": lambda m, n: run("UniFlowSampler", model=m, steps=n, **video),
        "joint": joint,
        "joint, live text": lambda m, n: joint(m, n, clip=clip),
        "v2t": lambda m, n: caption(m, n, video_cache="off"),
        "v2t, static": lambda m, n: caption(m, n, video_cache="static"),
        "v2t, refresh": lambda m, n: caption(m, n, video_cache="refresh=2"),
        "template": lambda m, n: caption(m, n, template="a ___ red ___ moves", length=0),
        "rank": rank,
    }


def waits(names: list[str] | None = None) -> dict[str, Any]:
    """What the program waits for in each step of a job, and how attention was called where it was not by flash."""
    _, clip, _ = load_embedded()
    found: dict[str, Any] = {}
    with on_card() as card:
        for job, act in jobs(clip).items():
            if names is not None and job not in names:
                continue
            model, counts = released(card), []
            act(model, 2)  # loads
            for steps in (2, 4):
                card.begin()
                act(model, steps)
                counts.append(Counter(card.waits))
            step = {f"{what}, {where.split(':')[0]}": n / 2 for (what, where), n in (counts[1] - counts[0]).items()}
            slower = sorted({kind for kind, masked in card.masked if kind != "flash"})
            found[job] = {"step": step, "run": sum(counts[0].values()), "slower attention": slower}
    return found


def peaks() -> list[dict[str, Any]]:
    """The most that a run takes beside the weights, and what ComfyUI was told that its passes need."""
    found = []
    with on_card() as card:
        model = released(card)
        management.load_models_gpu([model])
        asked: list[float] = []
        told = type(model.model).memory_required

        def memory_required(self: Any, *args: Any, **kwargs: Any) -> float:
            asked.append(told(self, *args, **kwargs))
            return asked[-1]

        for frames, text, guidance, job in [
            (frames, text, guidance, job)
            for frames, text in ((17, 256), (81, 256), (81, 512), (161, 512))
            for guidance, job in ((1.0, "t2v"), (5.0, "t2v"), (1.0, "joint"), (5.0, "joint"))
        ]:
            latent = {"samples": torch.zeros(1, 16, (frames - 1) // 4 + 1, *SIZE[2:])}
            both = {"positive": prompt(text), "negative": prompt(text), "latent": latent, "seed": 0, "shift": 3.0}
            rows = 1 if guidance == 1 else 2
            with mock.patch.object(type(model.model), "memory_required", memory_required):
                asked.clear()
                card.begin()
                if job == "t2v":
                    run("UniFlowSampler", model=model, steps=1, guidance=guidance, sampler="euler",
                        scheduler="uniform", denoise=1.0, **both)  # fmt: skip
                else:
                    run("JointSampler", model=model, steps=1, text_length=text, guidance=guidance, record=0, **both)
            required = asked[0] if rows == 2 else asked[1]  # core asks for both passes, then for one
            run_of = {"job": job, "frames": frames, "text": text, "rows": rows}
            found.append({**run_of, "peak": card.beside, "required": required})
    return found


def launches() -> dict[str, Any]:
    """Launches and traffic of a block, by the difference of three blocks and two: with core's Wan, with ours without
    text and with 256 tokens of it; and the same where comfy-kitchen has no kernels that write in place."""
    import comfy.ldm.wan.model

    attention = comfy.ldm.modules.attention.attention_pytorch
    options = {"optimized_attention_override": lambda _, *args, **kwargs: attention(*args, **kwargs)}

    def one_pass(card: Any, blocks: int, text: int | None) -> tuple[Counter[str], float]:
        config = core.ModelConfig(num_layers=blocks)
        made: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16, "operations": comfy.ops.disable_weight_init}
        if text is None:
            sizes = {name: getattr(config, name) for name in ("dim", "ffn_dim", "freq_dim", "text_dim", "num_heads")}
            network = comfy.ldm.wan.model.WanModel(model_type="t2v", out_dim=16, num_layers=blocks, **sizes, **made)
        else:
            network = pack_module("nodes.bridge.network").HostedNetwork(config, **made)
        network = card.takes(network).eval()
        x = torch.empty(1, *SIZE, device="cuda", dtype=torch.bfloat16)
        context = torch.empty(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
        words = {"text_tokens": torch.zeros(1, text, dtype=torch.long, device="cuda")} if text else {}
        card.begin()
        network(x, torch.full((1,), 500.0, device="cuda"), context, transformer_options=dict(options), **words)
        return card.launches, sum(card.traffic.values())

    found: dict[str, Any] = {}
    with on_card() as card:
        for name, text in (("core's Wan", None), ("without text", 0), ("with text", 256)):
            (few, little), (many, much) = (one_pass(card, blocks, text) for blocks in (2, 3))
            found[name] = {"launches": sum(many.values()) - sum(few.values()), "traffic": much - little,
                           "kinds": {kind: many[kind] - few[kind] for kind in many if many[kind] > few[kind]}}  # fmt: skip
    return found
