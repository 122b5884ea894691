"""What a run needs before it starts: packages, whole weights, and texts that fit."""

from __future__ import annotations

from typing import Any

import torch

from ..config import RunConfig
from ..data.shards import Shards
from ..errors import UniViGUError
from .config import TrainConfig
from .optimizers import require_bitsandbytes
from .start import require_peft


def clips_a_step(config: TrainConfig, accelerator: Any) -> int:
    """How many clips all processes take together for one step."""
    return config.batch * config.accumulate * int(accelerator.num_processes)


def is_sharded(accelerator: Any) -> bool:
    """Whether each process holds only a part of the weights (FSDP)."""
    return "FSDP" in str(accelerator.distributed_type)


def require_packages(config: TrainConfig) -> None:
    """Raise UniViGUError for a package that the run needs and that is not installed."""
    if config.trains == "lora":
        require_peft()
    if config.optimizer.kind == "adamw8bit":
        require_bitsandbytes()
    if config.optimizer.kind == "muon" and not hasattr(torch.optim, "Muon"):
        raise UniViGUError(
            f"optimizer.kind is muon, which torch {torch.__version__} does not have yet; update torch, or use adamw"
        )


def require_whole_weights(config: TrainConfig, accelerator: Any) -> None:
    """Raise UniViGUError for what needs whole weights where processes hold parts of them."""
    if not is_sharded(accelerator):
        return
    for wanted, entry, instead in (
        (config.optimizer.ema, "optimizer.ema", "0"),
        (config.optimizer.kind == "muon", "optimizer.kind", "adamw"),
        (config.keep.sample_every, "keep.sample_every", "0"),
    ):
        if wanted:
            raise UniViGUError(
                f"{entry} needs whole weights, and under FSDP every process holds only a part of them. Set {entry}: "
                f"{instead}"
            )


def require_usable_texts(config: TrainConfig, data: Shards, run: RunConfig) -> None:
    """Raise UniViGUError for clips without the texts that the stage needs, or texts that the model cannot hold."""
    if config.stage == "refine" and data.details < len(data):
        raise UniViGUError(
            f"{config.data}: {len(data) - data.details} of {len(data)} clips have no detailed caption, and the stage "
            "refine learns to write them; add clip.detail.txt files, or train recall"
        )
    longest = {"prompt": data.longest_prompt}
    if config.stage == "refine" or config.detail_share:
        longest["detailed caption"] = data.longest_detail
    for what, tokens in longest.items():
        if config.stage != "generate" and tokens > run.text_length:
            raise UniViGUError(
                f"{config.data}: the longest {what} has {tokens} tokens, the model's text stream {run.text_length}; "
                "leave long ones out with tokens, or set clip.text_length"
            )
