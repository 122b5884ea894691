"""Samplers: the three jobs over one loop, ranking, and templates."""

from .denoiser import Denoiser
from .guidance import GuidedDenoiser
from .jobs import JointResult, joint, text_to_video, video_to_text
from .loop import State
from .rank import caption_likelihood
from .settings import Ranking, Sampling, Size
from .template import fill_template

__all__ = [
    "Denoiser",
    "GuidedDenoiser",
    "JointResult",
    "Ranking",
    "Sampling",
    "Size",
    "State",
    "caption_likelihood",
    "fill_template",
    "joint",
    "text_to_video",
    "video_to_text",
]
