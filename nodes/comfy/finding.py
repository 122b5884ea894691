"""ComfyUI's MODEL, CLIP and VAE as the index of a folder's clips uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...uvg_core.media.video import Clip, ClipSpec
from ...uvg_core.media.video.footage import Footage
from ...uvg_core.media.video.shots import Cutting, Shot
from ...uvg_core.pipeline.film import read_ahead
from ...uvg_core.sampling import Sampling
from ...uvg_core.sampling.rank import padded
from .captions import clips_at_once, describe_together
from .conditioning import tokenizer_of
from .judging import judge
from .latents import encode_pixels
from .network import config_of, run_facts

_SAMPLE = 64  # numbers of each tensor that tell weights apart


class HostDescriber:
    """The three as ``Describer``. ``spec``: how clips are read."""

    def __init__(self, model: Any, clip: Any, vae: Any, spec: ClipSpec, footage: Footage) -> None:
        self._model, self._clip, self._vae, self._spec, self._footage = model, clip, vae, spec, footage
        self.together = clips_at_once(model, spec)
        run = run_facts(model)
        self.window = spec.frames / (spec.fps or run.fps)
        facts = config_of(model), run, spec, footage
        self.fingerprint = f"comfyui {blake2b(repr(facts).encode(), digest_size=8).hexdigest()} {_weights(model, vae)}"

    def read(self, path: Path) -> Clip:
        return self._footage.read(path, self._spec)

    def shots(self, path: Path, how: Cutting, done: float) -> Iterator[Shot]:
        # As Caption Shots reads them: frames from all of a shot, however long it is.
        return read_ahead(path, how, replace(self._spec, fps=None), self._footage, done=done, ahead=self.together)

    def latents(self, clips: Sequence[Clip | Shot]) -> Tensor:
        # One by one: of a batch of clips ComfyUI's VAE cuts off the last frames.
        return torch.cat([encode_pixels(self._vae, one.pixels) for one in clips])

    def captions(self, latents: Tensor) -> Sequence[str]:
        return describe_together(self._model, self._clip, latents, Sampling(), [0] * len(latents))

    def likelihoods(self, latents: Tensor, texts: Sequence[str]) -> Tensor:
        tokenizer = tokenizer_of(self._clip)
        return judge(self._model, latents, padded([tokenizer.ids(text) for text in texts]))


def _weights(model: Any, vae: Any) -> str:
    """The same for the same weights and LoRAs, as far as a sample of every tensor tells."""
    digest = blake2b(digest_size=16)
    weights = dict(model.model_state_dict())
    for name in model.patches:  # loaded or not, a patched weight is known by its patches
        weights.pop(name, None)
    _add(digest, [weights, model.patches, vae.first_stage_model.state_dict()])
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            _add(digest, str(name))
            _add(digest, value[name])
    elif isinstance(value, (list, tuple)):
        for one in value:
            _add(digest, one)
    elif type(value) in (Tensor, torch.nn.Parameter):
        flat = value.detach().flatten()
        some = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].float().cpu()
        digest.update(repr((tuple(value.shape), some.tolist())).encode())
    elif isinstance(value, (str, int, float, bool, type(None))):
        digest.update(repr(value).encode())
    else:  # such as a LoRA, or weights in a form of core's own
        digest.update(type(value).__name__.encode())
        _add(digest, getattr(value, "weights", None))
