"""VAE, text encoder and tokenizer as training wants them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.read import bytes_of, open_weights
from ..media.text_encoder import TextEncoder
from ..media.vae import LatentCodec, latent_shape
from ..pipeline.components import LARGE_BYTES, Components
from .sources import digest

# Of a part above LARGE_BYTES, the fingerprint reads the small tensors and every 16th other that is not huge.
_EVERY = 16
_SMALL_TENSOR, _HUGE_TENSOR = 2**22, 2**28


@dataclass(frozen=True)
class Encoders:
    """What turns clips and texts into what training reads.

    latent       uint8 ``[B,T,H,W,3]`` -> latents ``[B,16,F,h,w]`` in the checkpoint's latent space
    states       B texts -> prompt conditions ``[B,S,E]``
    tokens       text -> ids with the end-of-text token
    rows         text -> how many rows of its condition are kept: those beyond are zeros
    fingerprint  changes when any of them would give something else
    release      frees the memory that they take on the device; called when building ends

    Each may raise UniViGUError for a text that does not fit: that clip is left out.
    """

    latent: Callable[[Tensor], Tensor]
    states: Callable[[list[str]], Tensor]
    tokens: Callable[[str], list[int]]
    rows: Callable[[str], int]
    fingerprint: str
    release: Callable[[], object] = lambda: None

    @classmethod
    def from_components(cls, parts: Components) -> Encoders:
        """A checkpoint's VAE, text encoder and tokenizer. One part at a time is on the device, until another is
        needed or ``release`` is called. Hashes the weights: some seconds where they are large."""
        stack, on_device = ExitStack(), dict[str, Any]()
        tokenizer, space, text_states = parts.tokenizer, parts.config.model.latent_space, parts.text_states

        def release() -> None:
            on_device.clear()
            stack.close()

        def part(name: str) -> Any:
            if name not in on_device:
                release()
                on_device[name] = stack.enter_context(parts.using(name))
            return on_device[name]

        def latent(pixels_BTHWC: Tensor) -> Tensor:
            latent_shape(*pixels_BTHWC.shape[1:4])  # before the VAE is loaded
            return LatentCodec(part("vae"), space).encode(pixels_BTHWC)

        @torch.no_grad()
        def states(texts: list[str]) -> Tensor:
            return TextEncoder(part("encoder"), tokenizer, text_states)(texts).float()

        def rows(text: str) -> int:
            real = int(tokenizer.context([text])[1].sum())
            # The release's own code leaves the states of padding in place: there, padding carries information too.
            return real if text_states == "umT5" else parts.config.run.context_length

        return cls(latent, states, tokenizer.ids, rows, fingerprint_of(parts), release)


def fingerprint_of(parts: Components) -> str:
    """Over VAE and text encoder weights, tokenizer, latent space, kind of text states, and the sizes of a run.

    Parts up to 1 GiB are read whole. Of a larger one: names, shapes and types of all tensors, and the contents of the
    small ones (norms, biases) and of every sixteenth other; training on it would have changed those too."""
    run = parts.config.run
    sizes = [run.frames, run.height, run.width, run.fps, run.context_length, run.pad_token, run.eos_token]
    tokenizer = hashlib.sha256(parts.tokenizer.proto).hexdigest()
    weights = [weights_digest(one.path, one.prefix) for one in (parts.files.vae, parts.files.encoder)]
    return digest([parts.config.model.latent_space, parts.text_states, sizes, tokenizer, *weights])


def weights_digest(path: Path, prefix: str = "") -> str:
    """Over the tensors of a file whose names begin with ``prefix``, in hex: see ``fingerprint_of``."""
    weights = open_weights(path)
    stored = {name: weights.tensors[name] for name in sorted(weights.tensors) if name.startswith(prefix)}
    is_large = sum(one.nbytes for one in stored.values()) > LARGE_BYTES
    result = hashlib.sha256()
    for number, (name, one) in enumerate(stored.items()):
        result.update(f"{name.removeprefix(prefix)} {one.dtype} {list(one.shape)}\n".encode())
        is_sampled = number % _EVERY == 0 and one.nbytes <= _HUGE_TENSOR
        if not is_large or one.nbytes <= _SMALL_TENSOR or is_sampled:
            tensor = weights.read(name)  # bytes_of is a view: the tensor must outlive it
            result.update(bytes_of(tensor))
    return result.hexdigest()
