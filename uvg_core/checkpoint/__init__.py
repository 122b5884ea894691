"""Checkpoints: read any layout safely, build the network, write native files."""

from .build import init_from_wan, load_model
from .config import read_config
from .convert import convert
from .facts import Overrides
from .inspect import CheckpointReport, inspect_checkpoint
from .lora import Lora, LoraChoice
from .read import read_part
from .write import save_model

__all__ = [
    "CheckpointReport",
    "Lora",
    "LoraChoice",
    "Overrides",
    "convert",
    "init_from_wan",
    "inspect_checkpoint",
    "load_model",
    "read_config",
    "read_part",
    "save_model",
]
