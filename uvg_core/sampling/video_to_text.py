"""Video to text: video held clean, text noisy."""

from __future__ import annotations

from torch import Tensor

from ..errors import UniViGUError
from ..flow.schedule import checked_taus, text_times
from ..model import VideoCache
from .denoiser import Denoiser
from .loop import Callback, run
from .settings import SAMPLING, Sampling
from .start import Fixed, Schedule, noisy_text
from .streams import VideoStream
from .video_cache import CachePolicy


def video_to_text(
    denoise: Denoiser,
    video: Tensor,
    settings: Sampling = SAMPLING,
    *,
    fixed: Fixed | None = None,
    cache: VideoCache | None = None,
    taus: Schedule | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Describe a clip.

    Args:
        denoise: the network, with the condition of a hint or without any.
        video: clean latent ``[B,C,F,H,W]``.
        settings: steps, seed (row b uses seed + b), temperature, top_p, text_update (``bridge`` or ``euler``),
            text_length, video_cache and stop_when_stable; None is the released model's recipe.
        fixed: ``{position: id}``, or ids ``[L]`` / ``[B,L]`` with -1 where the model may choose.
        cache: of this clip and condition, for several runs to share where the policy is static.
        taus: a list rising from 0 to 1 in the place of even steps. callback: see ``sampling/loop.py``.

    Returns token ids ``[B,L]``. Raises UniViGUError for settings and inputs that do not fit the model.
    """
    settings = settings.resolved(captions=True)
    policy = CachePolicy.of(settings.video_cache, denoise.config)
    if settings.text_update == "release":
        raise UniViGUError(
            "text update is 'release', which is a rule for joint runs; use 'euler' for what the "
            "release does in video-to-text"
        )
    assert settings.steps is not None
    times = text_times(settings.steps) if taus is None else checked_taus(taus)
    text = noisy_text(denoise, settings, times, video, fixed=fixed, rounded=True)
    kept = policy.cache(denoise, cache)
    return run(VideoStream(video), text, denoise, cache=kept, policy=policy, callback=callback)[1].words()
