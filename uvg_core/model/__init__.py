"""The network."""

from .attention import XformersAttention, default_attention, sdpa_attention
from .block import Pass
from .kv_cache import VideoCache
from .options import Hooks, PassOptions, Prediction
from .transformer import UniViGU

__all__ = [
    "Hooks",
    "Pass",
    "PassOptions",
    "Prediction",
    "UniViGU",
    "VideoCache",
    "XformersAttention",
    "default_attention",
    "sdpa_attention",
]
