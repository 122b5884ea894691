"""Samplers: the three jobs over one loop, ranking, and templates."""

from .likelihood import caption_likelihood
from .loop import State
from .modes import JointResult, joint, text_to_video, video_to_text
from .template import fill_template

__all__ = ["JointResult", "State", "caption_likelihood", "fill_template", "joint", "text_to_video", "video_to_text"]
