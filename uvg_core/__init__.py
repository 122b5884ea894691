"""uvg_core: the Uni-ViGU network, its checkpoints, flows and samplers; no ComfyUI in here."""

from .checkpoint import Overrides, convert, init_from_wan, inspect_checkpoint, load_model, read_config, save_model
from .config import CheckpointConfig, ModelConfig, RunConfig
from .errors import UniViGUError
from .model import Prediction, UniViGU
from .sampling import (
    GuidedDenoiser,
    JointResult,
    Ranking,
    Sampling,
    State,
    caption_likelihood,
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
