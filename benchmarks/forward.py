"""One forward pass at full width: ours, core ComfyUI's Wan and diffusers' Wan, same machine, weights and token counts.

    python benchmarks/forward.py [--blocks 1 3] [--frames 12] [--side 32] [--turns 7] [--device cpu] [--dtype bfloat16]

Needs a ComfyUI where the tests find one; diffusers is taken from this command's own environment. All run in one
process, with torch's attention, in turn (A B A B); medians, and the median of the ratios to core's turn by turn.
"Equal tokens": ours with V video and T text tokens against core's with V + T video tokens; two depths give the time of
a block. Numbers go into benchmarks/numbers/forward_DEVICE.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WIDTH = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "text_dim": 4096}
VOCABULARY = 32_000  # for the logits; the released model's 256,300 rows take most of a small pass


def measure(
    blocks: int,
    video: list[int],
    longer: list[int],
    text: int,
    turns: int,
    device: str,
    dtype: str,
    extra: str,
    width: dict[str, int] = WIDTH,
) -> dict[str, Any]:
    """Inside ComfyUI: seconds of every turn and, on CUDA, kernels of a pass, by name."""
    import comfy.ldm.wan.model
    import comfy.ops
    import torch
    from check_made import bridge, core
    from worker import pack_module

    sys.path += [str(HERE), extra]  # behind ComfyUI's own packages
    from comfy.ldm.modules.attention import attention_pytorch
    from diffusers import WanTransformer3DModel
    from measuring import in_turn, kernels

    def torchs(_: Any, *args: Any, **kwargs: Any) -> Any:
        return attention_pytorch(*args, **kwargs)

    options = {"optimized_attention_override": torchs}
    kind, place = getattr(torch, dtype), torch.device(device)
    generator = torch.Generator().manual_seed(0)
    config = core.ModelConfig(**width, num_layers=blocks, vocab_size=VOCABULARY)
    ours = bridge.HostedNetwork(config, device=place, dtype=kind, operations=comfy.ops.disable_weight_init).eval()
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            values = torch.randn(weight.shape, generator=generator) * 0.02
            weight.copy_(values + float("norm" in name and name.endswith("weight")))
    weights = dict(ours.named_parameters())
    theirs = comfy.ldm.wan.model.WanModel(
        model_type="t2v", in_dim=16, out_dim=16, num_layers=blocks, freq_dim=256, device=place, dtype=kind,
        operations=comfy.ops.disable_weight_init, **width,
    ).eval()  # fmt: skip
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    diffusers: Any = WanTransformer3DModel(
        num_attention_heads=width["num_heads"], attention_head_dim=width["dim"] // width["num_heads"], in_channels=16,
        out_channels=16, text_dim=width["text_dim"], freq_dim=256, ffn_dim=width["ffn_dim"], num_layers=blocks,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    diffusers = diffusers.eval().to(place, kind)
    keys = pack_module("uvg_core.checkpoint.keys")
    names = {keys.from_native(name, "diffusers"): name for name in theirs.state_dict()}
    diffusers.load_state_dict({name: weights[names[name]] for name in diffusers.state_dict()})

    def latent(size: list[int]) -> Any:
        return torch.randn(1, 16, *size, generator=generator).to(place, kind)

    small, large = latent(video), latent(longer)
    clock = torch.full((1,), 500.0, device=place)
    context = torch.randn(1, 512, width["text_dim"], generator=generator).to(place, kind)
    tokens = torch.randint(VOCABULARY, (1, text), generator=generator).to(place)

    def joint(want_logits: bool) -> Any:
        stream = bridge.TextInput(tokens, clock, None, core.model.PassOptions(), (want_logits,))
        return ours(small, clock, context, dict(options), text_stream=stream)

    jobs = {
        "core": lambda: theirs(small, clock, context, transformer_options=dict(options)),
        "core, equal tokens": lambda: theirs(large, clock, context, transformer_options=dict(options)),
        "ours, no text": lambda: ours(small, clock, context, dict(options)),
        "ours, video and text": lambda: joint(False),
        "ours, video and text, logits": lambda: joint(True),
        "diffusers": lambda: diffusers(small, clock, context, return_dict=False),
        "diffusers, equal tokens": lambda: diffusers(large, clock, context, return_dict=False),
    }
    for job in jobs.values():
        job()
    same = (jobs["ours, no text"]() - jobs["core"]()).abs().max()
    launches = {name: kernels(job) for name, job in jobs.items()} if place.type == "cuda" else {}
    return {"seconds": in_turn(jobs, turns, place), "difference from core": float(same), "launches": launches}


def base_of(name: str) -> str:
    """The network that ``name`` is compared with: core's Wan on as many tokens."""
    return "core, equal tokens" if "equal" in name or "and text" in name else "core"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--side", type=int, default=32, help="latent height and width; a token is 2x2 of it")
    parser.add_argument("--frames", type=int, default=12, help="latent frames; one more makes up for the text")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    from statistics import median

    from in_comfyui_host import Inside, find_comfyui, options_for
    from measuring import ratio_of
    from saved import save

    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        parser.error("diffusers is not installed here: pip install diffusers")
    text = (args.side // 2) ** 2  # as many as a latent frame has tokens
    size = [args.frames, args.side, args.side]
    found: dict[str, Any] = {"video": args.frames * text, "text": text, "dtype": args.dtype, "blocks": {}}
    with (
        tempfile.TemporaryDirectory() as folder,
        Inside(find_comfyui(), Path(folder) / "base", options_for(args.device)) as inside,
    ):
        for blocks in args.blocks:
            found["blocks"][str(blocks)] = inside.call(
                "../../../benchmarks/forward", "measure", timeout=3600, blocks=blocks, video=size,
                longer=[args.frames + 1, *size[1:]], text=text, turns=args.turns, device=args.device, dtype=args.dtype,
                extra=str(Path(spec.origin).parents[1]),
            )  # fmt: skip
            measured = found["blocks"][str(blocks)]
            times = measured["seconds"]
            print(f"{blocks} blocks; ours without text is core's within {measured['difference from core']:g}")
            for name, values in times.items():
                ratio = ratio_of(values, times[base_of(name)])
                print(f"  {name:30s} {1000 * median(values):9.1f} ms   x {ratio:.3f}", flush=True)
    if len(args.blocks) > 1:
        low, high = (found["blocks"][str(n)]["seconds"] for n in (min(args.blocks), max(args.blocks)))
        depth = max(args.blocks) - min(args.blocks)
        block = {name: (median(high[name]) - median(low[name])) / depth for name in low}
        found["block"] = block
        for name, seconds in block.items():
            print(f"a block: {name:30s} {1000 * seconds:9.1f} ms   x {seconds / block['core, equal tokens']:.3f}")
    save(f"forward_{args.device}", found)


if __name__ == "__main__":
    main()
