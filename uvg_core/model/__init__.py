"""The network."""

from .attention import XformersAttention, default_attention, sdpa_attention
from .transformer import Hooks, Prediction, UniViGU

__all__ = ["Hooks", "Prediction", "UniViGU", "XformersAttention", "default_attention", "sdpa_attention"]
