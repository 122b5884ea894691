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
from check_made import bridge, checkpoint, conditioning, core, empty, load_embedded, run
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
    model_module = pack_module("nodes.comfy.model")
    known = model_module.UniViGUConfig({"image_model": "wan2.1", "model_type": "t2v", "dim": 1536})
    known.set_inference_dtype(dtype, None)
    config = core.ModelConfig(num_layers=blocks, **{"latent_space": "raw", **changes})
    model = model_module.UniViGUModel(known, config, core.RunConfig(), device=torch.device("cpu"))
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CUDA, offload_device=torch.device("cpu"))
    patcher.model_options["transformer_options"].update(plain_attention())
    return patcher


def plain_attention() -> dict[str, Any]:
    """torch's own attention in place of what core chose for the CPU at its start."""
    attention = comfy.ldm.modules.attention.attention_pytorch
    return {"optimized_attention_override": lambda _, *args, **kwargs: attention(*args, **kwargs)}


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


def waits() -> dict[str, Any]:
    """What the program waits for in each step of a job, and how attention was called where it was not by flash."""
    _, clip, _ = load_embedded()
    found: dict[str, Any] = {}
    with on_card() as card:
        act_on = jobs(clip)
        chosen = [(job, act, torch.bfloat16) for job, act in act_on.items()]
        chosen.append(("t2v in float16", act_on["t2v"], torch.float16))
        for job, act, dtype in chosen:
            model, counts = released(card, blocks=1, dtype=dtype), []
            management.load_models_gpu([model])
            for steps in (1, 2):
                card.begin()
                act(model, steps)
                counts.append(Counter(card.waits))
            step = {f"{what}, {where.split(':')[0]}": n for (what, where), n in (counts[1] - counts[0]).items()}
            slower = sorted({kind for kind, masked in card.masked if kind != "flash"})
            looked = sum(n for (_, where), n in counts[0].items() if "precision.py" in where)
            found[job] = {"step": step, "run": sum(counts[0].values()), "watch": looked, "slower attention": slower}
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
            for frames, text, job in ((17, 256, "joint"), (81, 256, "t2v"), (81, 512, "joint"), (161, 512, "t2v"))
            for guidance in (1.0, 5.0)
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

    def one_pass(card: Any, blocks: int, text: int | None) -> tuple[Counter[str], float]:
        config = core.ModelConfig(num_layers=blocks)
        made: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16, "operations": comfy.ops.disable_weight_init}
        if text is None:
            sizes = {name: getattr(config, name) for name in ("dim", "ffn_dim", "freq_dim", "text_dim", "num_heads")}
            network = comfy.ldm.wan.model.WanModel(model_type="t2v", out_dim=16, num_layers=blocks, **sizes, **made)
        else:
            network = pack_module("nodes.comfy.network").HostedNetwork(config, **made)
        network = card.takes(network).eval()
        x = torch.empty(1, *SIZE, device="cuda", dtype=torch.bfloat16)
        context = torch.empty(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
        words = {"text_tokens": torch.zeros(1, text, dtype=torch.long, device="cuda")} if text else {}
        card.begin()
        network(x, torch.full((1,), 500.0, device="cuda"), context, transformer_options=plain_attention(), **words)
        return card.launches, sum(card.traffic.values())

    found: dict[str, Any] = {}
    with on_card() as card:
        for name, text in (("core's Wan", None), ("without text", 0), ("with text", 256)):
            (few, little), (many, much) = (one_pass(card, blocks, text) for blocks in (2, 3))
            kinds = {kind: many[kind] - few[kind] for kind in many if many[kind] > few[kind]}
            found[name] = {"launches": sum(kinds.values()), "traffic": much - little, "kinds": kinds}
    return found


def fits() -> dict[str, float]:
    """Bytes on a card of 8 GB: the network in fp8, as it is loaded there by itself, and what runs take beside it."""
    quant = pack_module("uvg_core.checkpoint.quant")
    weights = bridge.weights_of(core.ModelConfig())
    kept = sum(w.numel() * (1 if quant.is_quantised_in_fp8(name) else 2) for name, w in weights.items())
    _, clip, _ = load_embedded()
    found: dict[str, Any] = {"weights": kept}
    with on_card(8 * 2**30) as card:
        act = jobs(clip)
        for name, job in {"t2v": "t2v", "joint": "joint", "v2t": "v2t", "v2t from the host": "v2t, static"}.items():
            model = released(card)
            management.load_models_gpu([model])
            # As much room as there is beside all thirty blocks; for the cache beside as much as two blocks take.
            card.memory = 8 * 2**30 - kept + card.now
            if name == "v2t from the host":
                card.memory = card.now + model.model.memory_required([1, *SIZE]) + 0.5e9
            card.begin()
            act[job](model, 2)
            found[name] = kept + card.beside
            found[f"{name}, kept on the host"] = sum(
                n * c.nbytes for c, n in card.copies.items() if c.way == "to the host" and c.nbytes > 3e7
            )
            management.current_loaded_models.clear()
            del model
            card.memory = 8 * 2**30
    return found


def graphs() -> dict[str, Any]:
    """The graphs that torch.compile makes of a pass as ComfyUI hosts it, on the CPU: one where nothing breaks it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    found = {}
    for job in ("t2v", "joint", "v2t"):
        torch._dynamo.reset()
        made: list[int] = []

        def backend(graph: Any, _: Any, made: list[int] = made) -> Any:
            made.append(len(graph.graph.nodes))
            return graph.forward

        model = bridge.load_network(checkpoint("compiled", torch.float32, num_layers=1), "default", None).clone()
        model.model_options["transformer_options"].update(plain_attention())
        set_torch_compile_wrapper(model, backend=backend)
        tokens = [3, 4, 1]
        both = {"positive": conditioning(2, tokens=tokens), "negative": conditioning(3, tokens=tokens), "seed": 0}
        if job == "v2t":
            video = torch.ones(1, 16, 2, 4, 6)

            sampling = core.Sampling(text_length=6, steps=2, video_cache="off")

            def caption(net: Any, clean: Any, sampling: Any = sampling) -> Any:
                return core.video_to_text(net, clean, sampling)

            bridge.run_on_clip(model, caption, video, sampling)
        elif job == "joint":
            run("JointSampler", model=model, latent=empty(), text_length=6, steps=2, guidance=4.0, shift=3.0, **both)
        else:
            run("UniFlowSampler", model=model, latent=empty(), steps=2, guidance=4.0, shift=3.0, sampler="euler",
                scheduler="uniform", denoise=1.0, **both)  # fmt: skip
        found[job] = made
    return found
