"""The network."""

from .attention import sdpa_attention
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
    "sdpa_attention",
]
