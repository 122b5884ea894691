"""Samplers: the three jobs over one loop, ranking, templates, and edits."""

from .denoiser import Denoiser
from .edit import Worded, edit, edit_sigmas
from .guidance import GuidedDenoiser
from .jobs import JointResult, joint, text_to_video, video_to_text
from .loop import State
from .rank import caption_likelihood
from .settings import Editing, Ranking, Sampling, Size
from .template import fill_template

__all__ = [
    "Denoiser",
    "Editing",
    "GuidedDenoiser",
    "JointResult",
    "Ranking",
    "Sampling",
    "Size",
    "State",
    "Worded",
    "caption_likelihood",
    "edit",
    "edit_sigmas",
    "fill_template",
    "joint",
    "text_to_video",
    "video_to_text",
]
