"""The network."""

from .attention import XformersAttention, default_attention, sdpa_attention
from .transformer import Prediction, UniViGU

__all__ = ["Prediction", "UniViGU", "XformersAttention", "default_attention", "sdpa_attention"]
