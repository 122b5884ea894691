"""The network a run starts from, which of its weights learn, and how they are written."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import Lora as LoraFile
from ..checkpoint import LoraChoice, Overrides, init_from_wan, load_model, read_config
from ..checkpoint.build import untrained_weight
from ..checkpoint.detect import open_checkpoint
from ..checkpoint.keys import is_text_half
from ..checkpoint.write import ALL_IN_ONE_PREFIX, Pending, carried_over, write_safetensors
from ..config import CheckpointConfig, ModelConfig, RunConfig
from ..errors import UniViGUError
from ..model import UniViGU
from ..model.attention import Attention
from .config import Lora, TrainConfig

# peft's LoRA goes on the attention and on both experts, as the field's Wan LoRAs do.
LORA_LAYERS = r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02]|ffn_t\.[02])"
LORA_PREFIX = "diffusion_model."
CRITIC = "critic"  # the name of the second LoRA of a run that matches distributions
# What a network that grows out of a Wan base is known to run on.
WAN_RUN = RunConfig(text_states="umT5", checked="trained from a Wan base, on normalised latents and umT5 states")
SPARE_ROWS = 128  # embeddings are padded: umT5's has 84 rows more than its tokenizer has words


def starting_facts(config: TrainConfig) -> CheckpointConfig:
    """What the starting file says of itself, with the sizes that ``config.clip`` states instead.

    A Wan base says nothing of texts: the released model's sizes are the defaults there."""
    start = open_checkpoint(config.model)
    facts = CheckpointConfig(ModelConfig(vocab_size=0), WAN_RUN) if start.is_wan else read_config(start)
    stated = {name: value for name, value in asdict(config.clip).items() if value is not None}
    return replace(facts, run=replace(facts.run, **stated))


def starting_network(
    config: TrainConfig, *, vocab_size: int, attention: Attention | None = None, dtype: torch.dtype | None = None
) -> UniViGU:
    """Build the network that ``config.model`` holds, or that grows out of it.

    A Wan base gets a text half for ``vocab_size`` tokens; a Uni-ViGU file keeps its own, or gets a fresh one
    (``text_half: fresh``). Raises UniViGUError for a file that does not fit, or one of another vocabulary.
    """
    checkpoint, flows = open_checkpoint(config.model), Overrides(text_flow=config.text_flow, source=config.source)
    if checkpoint.is_wan:
        model = init_from_wan(
            checkpoint,
            vocab_size=vocab_size,
            overrides=flows,
            seed=config.seed,
            embedding_std=config.embedding_std,
            dtype=dtype,
            attention=attention,
        )
    elif config.text_half == "fresh":
        model = with_fresh_text(load_model(checkpoint, dtype=dtype, attention=attention), vocab_size, config)
    else:
        model = load_model(checkpoint, dtype=dtype, attention=attention, overrides=flows)
        require_vocabulary(model.config, vocab_size, config.model)
    rules: dict[str, Any] = {
        "v2t_attention": config.v2t_attention,
        "kappa_exponent": config.kappa_exponent,
        "held_parts": "clean" if config.hold_share else None,
    }
    rules = {name: value for name, value in rules.items() if value not in (None, getattr(model.config, name))}
    if rules and config.trains == "lora":
        name, value = next(iter(rules.items()))
        raise UniViGUError(
            f"{name} is {value}, but {config.model} uses {getattr(model.config, name)}, and a LoRA file cannot store "
            f"this setting. Remove {name}, or set trains to all or text"
        )
    model.config = replace(model.config, **rules)
    return model.train()


def require_vocabulary(model: ModelConfig, vocab_size: int, path: str | Path) -> None:
    """Raise UniViGUError where the tokenizer has words that the network has no rows for, or many fewer than it has."""
    if not 0 <= model.vocab_size - vocab_size <= SPARE_ROWS:
        raise UniViGUError(
            f"{path}: this network knows {model.vocab_size} tokens, the tokenizer has {vocab_size}: they belong to "
            "different models. Use the tokenizer the checkpoint was trained with, or train a new text half with "
            "text_half: fresh"
        )


def with_fresh_text(model: UniViGU, vocab_size: int, config: TrainConfig) -> UniViGU:
    """The same video half with a text half that has learnt nothing: copies of the video's weights, a zero text head,
    random rows of E (``embedding_std``), as from a Wan base."""
    old = model.config
    flow, source = config.text_flow or old.text_flow, config.source or old.source
    wanted = replace(old, vocab_size=vocab_size, text_flow=flow, source=source)
    grown = UniViGU(wanted, attention=model.attention, dtype=model.token_embedding.weight.dtype)
    generator = torch.Generator().manual_seed(config.seed)
    stored = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in grown.named_parameters():
            weight.copy_(untrained_weight(name, weight.shape, stored.__getitem__, config.embedding_std, generator))
    return grown


def choose_trainable(model: UniViGU, config: TrainConfig) -> UniViGU:
    """Mark what learns, in float32, and freeze the rest; ``lora`` puts peft's layers in (in place).

    In the ``generate`` stage the text half has no part in the forward pass and stays frozen too."""
    model.requires_grad_(config.trains == "all")
    if config.trains == "lora":
        require_peft()
        from peft import LoraConfig, inject_adapter_in_model

        lora = config.lora
        alpha: Any = lora.alpha  # peft says int, and divides: any number does
        wanted = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=LORA_LAYERS)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)  # peft draws one half of each pair; the same seed must give the same run
            inject_adapter_in_model(wanted, model)
            if config.stage == "distill" and config.distill.matching == "distribution":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # that there are two is what is meant
                    inject_adapter_in_model(wanted, model, adapter_name=CRITIC)
                use_lora(model, "default")
    for name, weight in model.named_parameters():
        in_text_half = ".ffn_t." in name if config.trains == "lora" else is_text_half(name)
        learns = weight.requires_grad or (config.trains == "text" and in_text_half)
        weight.requires_grad_(learns and not (config.stage == "generate" and in_text_half))
        if weight.requires_grad:
            weight.data = weight.data.float()
    if config.trains == "lora" and config.lora.start is not None:
        start_from_lora(model, config.lora, config.lora.start)
    return model


def use_lora(model: UniViGU, name: str | None) -> None:
    """Have a network with peft's layers use the LoRA of this name, or none. Which of them learn stays as it is."""
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if hasattr(layer, "_active_adapter") and hasattr(layer, "_disable_adapters"):
            layer._active_adapter, layer._disable_adapters = [name or "default"], name is None


@torch.no_grad()
def start_from_lora(model: UniViGU, lora: Lora, path: str) -> None:
    """Put the low-rank pairs of a LoRA file, whoever wrote it, into peft's layers: the sums are the file's, also where
    ``lora`` has another alpha or a higher rank. Layers that the file does not have start from nothing learnt.

    Raises UniViGUError for a file that does not fit, is of a higher rank, or holds more than such pairs."""
    file = LoraFile(LoraChoice(Path(path)), model.config)
    weights = dict(model.named_parameters())
    others = [*file.match.unmatched, *file.match.unused]
    for name, patches in file.patches.items():
        layer = name.removesuffix(".weight")
        if set(patches[0].parts) != {"down", "up"} or len(patches) > 1 or not re.fullmatch(LORA_LAYERS, layer):
            others.append(name)
            continue
        parts = file.tensors(patches[0])
        down, up = parts["down"].flatten(1).float(), parts["up"].flatten(1).float()
        if len(down) > lora.rank:
            raise UniViGUError(
                f"{path}: has rank {len(down)} at {layer}, but lora.rank is {lora.rank}; set it to {len(down)}"
            )
        half = f"{layer}.lora_{{}}.default.weight"
        weights[half.format("A")][: len(down)] = down
        weights[half.format("B")][:, : len(down)] = up * (patches[0].scale * lora.rank / lora.alpha)
    if others:
        raise UniViGUError(
            f"{path}: contains more than low-rank pairs for attention and experts ({', '.join(others[:3])}), so it "
            "cannot be trained further. Merge it into the model with convert --lora, and start from the result"
        )


def require_peft() -> None:
    """Raise UniViGUError where peft is not installed."""
    if find_spec("peft") is None:
        raise UniViGUError("trains: lora needs peft: pip install peft")


def lora_weights(state: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """peft's weights in the names that ComfyUI loads: ``diffusion_model.<layer>.lora_A.weight``, ``lora_B`` and
    ``alpha``."""
    found: dict[str, Tensor] = {}
    for name, weight in state.items():
        match = re.fullmatch(r"(?P<layer>.+)\.(?P<half>lora_[AB])\.default\.weight", name)
        if match is not None:
            found[f"{LORA_PREFIX}{match['layer']}.{match['half']}.weight"] = weight.detach().cpu().contiguous()
            found[f"{LORA_PREFIX}{match['layer']}.alpha"] = torch.tensor(lora.alpha)
    return found


def save_lora(path: str | Path, state: Mapping[str, Tensor], lora: Lora, facts: Mapping[str, str]) -> None:
    """Write a LoRA file, whole or not at all; ``facts`` go into its metadata."""
    weights = {name: Pending.of(weight) for name, weight in lora_weights(state, lora).items()}
    write_safetensors(path, weights, {"format": "pt", **facts})


def save_network(path: str | Path, state: Mapping[str, Tensor], config: TrainConfig, facts: CheckpointConfig) -> None:
    """Write a trained network as a native file, with whatever else the starting file carried (VAE, text encoder,
    tokenizer) taken over as it was. Weights that did not learn are stored in their own dtype, the others too.

    The file appears whole or not at all."""
    start = open_checkpoint(config.model)
    others = {} if start.is_wan else carried_over(start.weights, start.others)
    prefix = ALL_IN_ONE_PREFIX if others else ""
    pending = {prefix + name: Pending.of(weight) for name, weight in state.items()}
    write_safetensors(path, {**pending, **others}, {"config": facts.to_json(), "format": "pt"})
