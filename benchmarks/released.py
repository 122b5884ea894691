"""One joint pass of the released code and of ours: same machine, same weights, same tokens.

    python benchmarks/released.py CLONE [--blocks 1 3] [--frames 12] [--side 32] [--text 256] [--turns 7] [--device cpu]

CLONE: a folder with a clone of github.com/Fr0zenCrane/Uni-ViGU, which is imported from there, with the diffusers that
lies in it (it needs omegaconf: pip install omegaconf). Random weights at full width, both networks on
torch.nn.functional.scaled_dot_product_attention; in turn (A B A B): ours in bfloat16, the release in bfloat16, and as
its script runs it, float32 weights under autocast. Numbers go into benchmarks/numbers/released_DEVICE.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import Job, in_turn, ratio_of
from saved import save
from torch import Tensor, nn

from uvg_core.checkpoint.keys import from_native
from uvg_core.config import ModelConfig
from uvg_core.model import UniViGU

VOCABULARY = 32_000  # for the logits; the released model's 256,300 rows take most of a small pass


def released(clone: Path, config: ModelConfig, weights: dict[str, Tensor]) -> nn.Module:
    """The release's network, its weights by our names."""
    sys.path.insert(0, str(clone))
    import model.transformer as theirs

    def made(*_: Any, **__: Any) -> nn.Module:
        wan: nn.Module = theirs.WanTransformer3DModel(
            num_attention_heads=config.num_heads, attention_head_dim=config.head_dim, in_channels=16, out_channels=16,
            text_dim=config.text_dim, freq_dim=config.freq_dim, ffn_dim=config.ffn_dim, num_layers=config.num_layers,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        )  # fmt: skip
        return wan

    theirs.WanTransformer3DModel.from_pretrained = made
    sizes = {"hidden_size": config.dim, "n_heads": config.num_heads, "cond_dim": config.dim}
    network: nn.Module = theirs.WanUnifiedTransformer(config.vocab_size, False, sizes, "")
    found = network.load_state_dict({from_native(name, "release"): w for name, w in weights.items()}, strict=False)
    named = {name for name, _ in network.named_parameters()}
    if found.unexpected_keys or named & set(found.missing_keys):
        raise SystemExit(f"names of the release do not fit: {found}")
    return network.eval().requires_grad_(False)


@torch.no_grad()
def measure(blocks: int, args: argparse.Namespace) -> dict[str, Any]:
    """By network: seconds of every turn, and how far its velocity is from ours."""
    device = torch.device(args.device)
    config = ModelConfig(num_layers=blocks, vocab_size=VOCABULARY)
    ours = UniViGU(config).eval().requires_grad_(False)
    for name, weight in ours.named_parameters():
        nn.init.normal_(weight, std=0.02)
        if "norm" in name and name.endswith("weight"):
            weight.add_(1)
    weights = dict(ours.state_dict())
    ours = ours.to(device, torch.bfloat16)
    as_run, plain = released(args.clone, config, weights), released(args.clone, config, weights)
    as_run, plain = as_run.to(device), plain.to(device, torch.bfloat16)
    shape = (1, 16, args.frames, args.side, args.side)
    video = torch.randn(shape, device=device, dtype=torch.bfloat16)
    text = torch.randint(VOCABULARY, (1, args.text), device=device)
    clock = torch.full((1,), 500.0, device=device, dtype=torch.bfloat16)
    context = torch.randn(1, 512, config.text_dim, device=device, dtype=torch.bfloat16)
    given = (video, text, clock, clock, context)

    def under_autocast() -> Any:
        with torch.autocast(device.type, torch.bfloat16):  # on CUDA it does so itself
            return as_run(*given)

    jobs: dict[str, Job] = {
        "ours": lambda: ours(*given),
        "released code, bfloat16": lambda: plain(*given),
        "released code, float32 under autocast": under_autocast,
    }
    said = {name: job()[0].float() for name, job in jobs.items()}
    seconds = in_turn(jobs, args.turns, device)
    apart = {name: float((v - said["ours"]).norm() / said["ours"].norm()) for name, v in said.items()}
    return {"seconds": seconds, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 3])
    for name, default in (("frames", 12), ("side", 32), ("text", 256), ("turns", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-save", action="store_true", help="only print")
    args = parser.parse_args()
    found: dict[str, Any] = {"video": args.frames * (args.side // 2) ** 2, "text": args.text, "blocks": {}}
    for blocks in args.blocks:
        found["blocks"][str(blocks)] = measure(blocks, args)
        one = found["blocks"][str(blocks)]
        for name, times in one["seconds"].items():
            ratio = ratio_of(one["seconds"]["ours"], times)
            took, apart = 1000 * statistics.median(times), 100 * one["apart"][name]
            print(f"{blocks} blocks, {name:38s} {took:7.0f} ms   ours x {ratio:.2f}   {apart:.2f} % apart", flush=True)
    if not args.no_save:
        save(f"released_{args.device}", found)


if __name__ == "__main__":
    main()
