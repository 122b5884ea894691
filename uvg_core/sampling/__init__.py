"""Samplers: the three jobs over one loop, ranking, and templates."""

from .jobs import JointResult, joint, text_to_video, video_to_text
from .loop import State
from .rank import caption_likelihood
from .template import fill_template

__all__ = ["JointResult", "State", "caption_likelihood", "fill_template", "joint", "text_to_video", "video_to_text"]
