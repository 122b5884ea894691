"""Does a checkpoint work here: keys and shapes, finite outputs, a known prompt.

Meant for the released weights, which this project has never seen: its own tests run on random weights of the same
names and sizes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .errors import UniViGUError
from .pipeline import Pipeline, Sampling, Size
from .sampling import text_to_video, video_to_text

# The first that fits what the checkpoint reads: the release's example, or the embedded model's own world.
KNOWN_PROMPTS = (
    "A golden retriever runs across a sunlit grassy field filled with tiny wildflowers.",
    "a large red circle moves right quickly on a navy background",
)
FEW_STEPS = 4


def check_checkpoint(pipe: Pipeline, size: Size) -> Iterator[str]:
    """One line for each check that passed. Raises UniViGUError at the first that fails."""
    with pipe.network() as network:
        config = network.config  # loading is strict: every key and shape is right from here on
        count = sum(p.numel() for p in network.parameters())
        yield f"ok  keys and shapes: {count / 1e9:.3f}B parameters, {config.num_layers} blocks of width {config.dim}"
        generator = torch.Generator().manual_seed(0)
        latent = torch.randn(1, config.in_dim, 2, 8, 8, generator=generator).to(pipe.device)
        context = torch.randn(1, 8, config.text_dim, generator=generator).to(pipe.device)
        tokens = torch.randint(config.vocab_size, (1, 8), generator=generator).to(pipe.device)
        text = tokens if config.text_flow == "discrete" else torch.randn(1, 8, config.dim).to(pipe.device)
        time = torch.full((1,), 500.0, device=pipe.device)
        with torch.no_grad():
            velocity, logits = network(latent, text, time, time, context)
        for name, part in (("velocity", velocity), ("logits", logits)):
            assert part is not None
            if not bool(part.isfinite().all()):
                raise UniViGUError(
                    f"{pipe.parts.path}: the {name} of a forward pass is not finite; try --dtype bf16 or fp32"
                )
            yield f"ok  {name} finite: {list(part.shape)}, standard deviation {part.float().std().item():.3f}"
        text_to_video(network, noise=latent, context=context, steps=2, guidance_scale=1)
        video_to_text(network, video=latent, length=4, steps=2)
        yield "ok  two steps of each sampler"
    tokenizer, rows = pipe.tokenizer, pipe.config.run.context_length
    prompt = next((known for known in KNOWN_PROMPTS if len(tokenizer.ids(known)) <= rows), "a")
    pixels = pipe.generate(prompt, size=size, sampling=Sampling(steps=FEW_STEPS))
    spread = pixels.float().std().item()
    if spread < 1:
        raise UniViGUError(
            f"{pipe.parts.path}: the known prompt gave a flat picture (standard deviation {spread:.2f} of 255); "
            "try --latent-space raw or normalised, and --dtype bf16 or fp32"
        )
    yield f"ok  “{prompt}” gave {list(pixels.shape)} with a standard deviation of {spread:.1f} of 255"
