"""Checkpoints: read any layout safely, build the network, write native files.

From a path to a network: ``locate`` finds its files, ``read`` opens them (only their tables of contents), ``detect``
finds the network among the tensors' names, ``config`` its settings, ``fit`` compares names and shapes, and ``build``
makes the network and reads each tensor into it, for which the file is opened again.
"""

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
