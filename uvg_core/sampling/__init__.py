"""Samplers: the three jobs over one loop, ranking, templates, and edits."""

from .denoiser import Denoiser
from .edit import Worded, edit, edit_sigmas
from .guidance import GuidedDenoiser
from .jobs import JointResult, joint, text_to_video, video_to_text
from .loop import State
from .rank import caption_likelihood, clip_likelihood
from .settings import BestOf, Editing, Judging, Ranking, Sampling, Size
from .template import fill_template, joint_template

__all__ = [
    "BestOf",
    "Denoiser",
    "Editing",
    "GuidedDenoiser",
    "JointResult",
    "Judging",
    "Ranking",
    "Sampling",
    "Size",
    "State",
    "Worded",
    "caption_likelihood",
    "clip_likelihood",
    "edit",
    "edit_sigmas",
    "fill_template",
    "joint",
    "joint_template",
    "text_to_video",
    "video_to_text",
]
