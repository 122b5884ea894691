"""Samplers: the three jobs over one loop, ranking, and templates."""

from .denoiser import Denoiser, GuidedDenoiser
from .joint import JointResult, joint
from .loop import State
from .rank import caption_likelihood
from .settings import Ranking, Sampling, Size
from .template import fill_template
from .text_to_video import text_to_video
from .video_to_text import video_to_text

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
