"""Widgets made from settings: the default, range, choices and tooltip of a widget are those of the field that it sets.

A number widget cannot be empty: where a setting may be None, a number outside of its range stands for None, 0 where it
can and -1 elsewhere. ``widget`` offers that number and ``read`` takes it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from annotated_types import Gt
from comfy_api.latest import io
from pydantic.fields import FieldInfo

from ..uvg_core.sampling import Sampling, Size
from ..uvg_core.settings import about, choices, fields_of, kind_of, limits
from .comfy.folders import NO_FILE, file_names

Class = TypeVar("Class")

# Widgets that are named otherwise than the field that they set.
FIELDS = {"guidance": "guidance_scale", "length": "text_length", "learning_rate": "rate"}
SEEDS, ALL_SEEDS = 2**63, 2**64  # numbers that a generator takes as a seed; those that ComfyUI draws from


def widget(cls: type, name: str, **changes: Any) -> Any:
    """The input ``name`` for a field of a settings class; ``changes``: arguments of ComfyUI's input that differ from
    what the field says, or that it says nothing about."""
    field = fields_of(cls)[FIELDS.get(name, name)]
    kind = kind_of(field.annotation)
    given: dict[str, Any] = {"default": field.default, "tooltip": field.description}
    if field.default is None:
        empty = _empty(field)
        given["display_name"] = f"{name} ({empty} = auto)"
        given["tooltip"] += f" {'Below 0' if empty else 0}: {about(field, 'auto')}."
        given["default"] = empty
    if choices(field) or "options" in changes:
        return io.Combo.Input(name, **{"options": list(choices(field)), **given, **changes})
    if kind in (int, float):
        low, high = limits(field)
        given |= {"min": low if field.default is not None else given["default"], "max": high}
        changes |= {key: kind(changes.get(key, given[key])) for key in ("default", "min", "max")}
    make = {int: io.Int, float: io.Float, bool: io.Boolean, str: io.String}[kind]
    return make.Input(name, **{**given, **changes})


def each(cls: type, **changes: Any) -> list[Any]:
    """A widget for each field of a settings class."""
    return [widget(cls, name, **changes) for name in fields_of(cls)]


def read(cls: type[Class], inputs: Mapping[str, Any], **more: Any) -> Class:
    """The settings that a node's inputs stand for; those that an older workflow lacks keep their defaults."""
    fields = fields_of(cls)
    values = {FIELDS.get(name, name): value for name, value in inputs.items()}
    if "seed" in values and "seed" in fields:
        values["seed"] %= ALL_SEEDS if limits(fields["seed"])[1] is None else SEEDS
    given = {name: value for name, value in values.items() if name in fields}
    empty = {name: None for name, value in given.items() if _is_empty(fields[name], value)}
    return cls(**{**given, **empty, **more})


def _empty(field: FieldInfo) -> int:
    """The number that stands for None."""
    low, _ = limits(field)
    return 0 if low > 0 or Gt(0) in field.metadata else -1


def _is_empty(field: FieldInfo, value: Any) -> bool:
    return field.default is None and (value < 0 or value == _empty(field))


def seed(cls: type = Sampling) -> Any:
    return widget(cls, "seed", max=ALL_SEEDS - 1, control_after_generate=True)


def model(tooltip: str = "The model, from Load Uni-ViGU.", **options: Any) -> Any:
    return io.Model.Input("model", tooltip=tooltip, **options)


def clip(tooltip: str = "The CLIP, from Load Uni-ViGU: it carries the tokenizer.", **options: Any) -> Any:
    return io.Clip.Input("clip", tooltip=tooltip, **options)


def vae(tooltip: str = "The Wan VAE, from Load Uni-ViGU.", **options: Any) -> Any:
    return io.Vae.Input("vae", tooltip=tooltip, **options)


def null_embedding(tooltip: str, **options: Any) -> Any:
    files = [NO_FILE, *file_names("null_embedding")]
    return io.Combo.Input("null_embedding", options=files, default=NO_FILE, optional=True, tooltip=tooltip, **options)


def size(**changes: Any) -> list[Any]:
    """The widgets of a clip's size."""
    sides = [widget(Size, side, step=16) for side in ("width", "height")]
    return [*sides, widget(Size, "frames", **{"max": 1025, **changes})]


def clean_latent() -> Any:
    return io.Latent.Input("latent", tooltip="A clean video latent, from Encode Video for Uni-ViGU.")


def prompts(positive: str) -> list[Any]:
    """The two conditionings of guidance."""
    negative = "What guidance leads away from; usually an empty Uni-ViGU Prompt."
    return [io.Conditioning.Input("positive", tooltip=positive), io.Conditioning.Input("negative", tooltip=negative)]


def captioning() -> list[Any]:
    """The widgets of video-to-text, shared by the nodes that describe clips."""
    return [
        widget(Sampling, "length"),
        widget(Sampling, "steps", max=1000),
        seed(),
        widget(
            Sampling,
            "temperature",
            max=10,
            step=0.05,
            tooltip="0 always takes the likeliest word. Below 0: what the checkpoint recommends.",
        ),
        widget(Sampling, "top_p", min=0.01, step=0.01, advanced=True),
        widget(
            Sampling,
            "stop_when_stable",
            max=100,
            advanced=True,
            tooltip="Stops as soon as this many steps in a row draw the same words and the model gives each of them a "
            "probability of at least 0.9; 0 takes every step.",
        ),
        widget(
            Sampling,
            "text_update",
            options=["bridge", "euler"],
            advanced=True,
            tooltip="bridge is exact at any number of steps; euler is the release's rule.",
        ),
    ]


def video_cache() -> Any:
    return widget(
        Sampling,
        "video_cache",
        options=["auto", "off", "static", "refresh=2", "refresh=4", "refresh=8", "refresh=16"],
        optional=True,
        advanced=True,
        tooltip="Keeps what the network made of the clip from one step to the next, which saves most of the time. "
        "static looks at it once, refresh=4 in every 4th step, off in each. auto: once if that changes nothing with "
        "this checkpoint, else off.",
    )
