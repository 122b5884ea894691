"""What a pass needs beside the weights, against what ComfyUI is told: full width, two blocks (the peak of any number).

    python benchmarks/memory.py [--frames 2 8 16] [--text 256] [--device cpu]

Needs a ComfyUI where the tests find one. Numbers go into benchmarks/numbers/memory_DEVICE.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WIDTH = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "text_dim": 4096}
VOCABULARY = 256_300
JOBS = {  # name: rows of a batch, want_velocity, how many of the rows want logits
    "text to video, one pass": (1, True, 0),
    "text to video, both passes of guidance": (2, True, 0),
    "video to text": (1, False, 1),
    "joint, one pass": (1, True, 1),
    "joint, both passes of guidance": (2, True, 1),
}


def measure(frames: int, side: int, text: int, rows: int, velocity: bool, logits: int, device: str) -> dict[str, Any]:
    """Inside ComfyUI: the peak of one pass above what was held before, and the estimate."""
    import comfy.model_management
    import torch
    from check_made import bridge, core
    from comfy.ldm.modules.attention import attention_pytorch

    sys.path.append(str(HERE))
    from measuring import peak

    place = torch.device(device)
    state = sys.modules[__name__].__dict__.setdefault("_kept", {})
    if "model" not in state:
        known = bridge.UniViGUConfig({"image_model": "wan2.1", "model_type": "t2v", "dim": WIDTH["dim"]})
        known.set_inference_dtype(torch.bfloat16, None)
        config = core.ModelConfig(**WIDTH, num_layers=2, vocab_size=VOCABULARY)
        state["model"] = bridge.UniViGUModel(known, config, core.RunConfig(), device=place)
        for weight in state["model"].diffusion_model.parameters():
            weight.data.zero_()
    model = state["model"]
    model.text_length, model.told = text, logits
    network = model.diffusion_model
    video = torch.zeros(rows, 16, frames, side, side, device=place, dtype=torch.bfloat16)
    clock = torch.full((rows,), 500.0, device=place)
    context = torch.zeros(rows, 512, WIDTH["text_dim"], device=place, dtype=torch.bfloat16)
    tokens = torch.zeros(rows, text, dtype=torch.long, device=place)
    stream = {
        "content": tokens, "mask": None, "time": clock, "want_velocity": velocity, "cache": None,
        "logits_rows": slice(0, logits) if logits else False,
    }  # fmt: skip

    def torchs(_: Any, *args: Any, **kwargs: Any) -> Any:
        return attention_pytorch(*args, **kwargs)  # what ComfyUI takes on CUDA; on a CPU it makes the whole matrix

    def job() -> None:
        options = {"optimized_attention_override": torchs}
        network(video, clock, context, options, **({"text_stream": stream} if text else {}))

    needed = peak(job, place)
    comfy.model_management.pytorch_attention_flash_attention = lambda: True  # as on CUDA
    shapes = {"text_tokens": [list(tokens.shape)]} if text else {}
    return {"peak": needed, "estimate": float(model.memory_required(list(video.shape), shapes))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[2, 8, 16], help="latent frames")
    parser.add_argument("--side", type=int, default=64, help="latent height and width; a token is 2x2 of it")
    parser.add_argument("--text", type=int, nargs="+", default=[256])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    from in_comfyui_host import Inside, find_comfyui, options_for
    from measuring import MIB
    from saved import save

    found: list[dict[str, Any]] = []
    start = options_for(args.device)
    with tempfile.TemporaryDirectory() as folder, Inside(find_comfyui(), Path(folder) / "base", start) as inside:
        for name, (rows, velocity, logits) in JOBS.items():
            for frames in args.frames:
                for text in args.text:
                    told = inside.call(
                        "../../../benchmarks/memory", "measure", timeout=3600, frames=frames, side=args.side, text=text,
                        rows=rows, velocity=velocity, logits=logits, device=args.device,
                    )  # fmt: skip
                    told |= {"job": name, "video": frames * (args.side // 2) ** 2, "text": text, "rows": rows}
                    found.append(told)
                    print(
                        f"{name:40s} {told['video']:6d} + {text:3d} tokens   peak {told['peak'] / MIB:8.1f} MiB   "
                        f"estimate {told['estimate'] / MIB:8.1f}   x {told['estimate'] / told['peak']:.2f}",
                        flush=True,
                    )
    save(f"memory_{args.device}", found)


if __name__ == "__main__":
    main()
