"""Text to video: video noisy, text held clean."""

from __future__ import annotations

from torch import Tensor

from .denoiser import Denoiser
from .loop import Callback, run
from .settings import SAMPLING, Sampling
from .start import Schedule, clean_text, noisy_video


def text_to_video(
    denoise: Denoiser,
    noise: Tensor,
    settings: Sampling = SAMPLING,
    *,
    text: Tensor | None = None,
    text_mask: Tensor | None = None,
    sigmas: Schedule | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Generate a latent from a prompt.

    Args:
        denoise: the network with the prompt's condition and guidance, e.g. ``GuidedDenoiser``.
        noise: ``[B,C,F,H,W]``, standard normal.
        settings: steps, shift and solver; None is the released model's recipe.
        text: the prompt's token ids ``[B,L]``, or None for an empty text stream (plain Wan). text_mask: ``[B,L]``.
        sigmas: any falling list from 1 to 0 in the place of steps and shift.
        callback: see ``sampling/loop.py``.

    Returns the latent ``[B,C,F,H,W]``. Raises UniViGUError for inputs that do not fit the model or are not finite.
    """
    video = noisy_video(noise, settings.resolved(), sigmas)
    held = clean_text(denoise, text, text_mask, noise)
    return run(video, held, denoise, solver=settings.solver, callback=callback)[0].latent
