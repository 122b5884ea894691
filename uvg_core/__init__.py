"""uvg_core: the Uni-ViGU network, its checkpoints, flows and samplers; no ComfyUI in here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Overrides, convert, init_from_wan, inspect_checkpoint, load_model, read_config, save_model
    from .config import CheckpointConfig, ModelConfig, RunConfig
    from .errors import UniViGUError
    from .model import Prediction, UniViGU
    from .sampling import (
        GuidedDenoiser,
        JointResult,
        Judging,
        Ranking,
        Sampling,
        State,
        caption_likelihood,
        clip_likelihood,
        fill_template,
        joint,
        text_to_video,
        video_to_text,
    )

__version__ = "0.2.0"

__all__ = [
    "CheckpointConfig",
    "GuidedDenoiser",
    "JointResult",
    "Judging",
    "ModelConfig",
    "Overrides",
    "Prediction",
    "Ranking",
    "RunConfig",
    "Sampling",
    "State",
    "UniViGU",
    "UniViGUError",
    "caption_likelihood",
    "clip_likelihood",
    "convert",
    "fill_template",
    "init_from_wan",
    "inspect_checkpoint",
    "joint",
    "load_model",
    "read_config",
    "save_model",
    "text_to_video",
    "video_to_text",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: the command line must be able to take a Ctrl-C before that.
    if name in __all__:
        for home in ("errors", "config", "model", "sampling", "checkpoint"):
            if hasattr(module := import_module(f".{home}", __name__), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
