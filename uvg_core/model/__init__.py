"""The network."""

from .attention import XformersAttention, default_attention, sdpa_attention
from .kv_cache import VideoCache
from .transformer import Hooks, PassOptions, Prediction, UniViGU

__all__ = [
    "Hooks",
    "PassOptions",
    "Prediction",
    "UniViGU",
    "VideoCache",
    "XformersAttention",
    "default_attention",
    "sdpa_attention",
]
