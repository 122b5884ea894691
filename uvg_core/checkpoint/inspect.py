"""What is in a checkpoint, told without loading it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import ModelConfig, RunConfig
from ..errors import UniViGUError
from .config import about_frequencies, model_config
from .detect import Checkpoint, describe_foreign, open_checkpoint
from .facts import Overrides, run_and_card
from .fit import Misfit, compare
from .keys import TEXT_HALF, VIDEO_HALF, part_of
from .write import ALL_IN_ONE_PREFIX

_LAYOUTS = {
    "native": "Uni-ViGU, native",
    "release": "Uni-ViGU, the release's names",
    "wan": "plain Wan base, original names",
    "diffusers": "plain Wan base, diffusers names",
}
_NETWORK_PARTS = (VIDEO_HALF, *dict.fromkeys(part for _, part, _ in TEXT_HALF))


@dataclass(frozen=True)
class CheckpointReport:
    """What a file holds; ``str()`` gives it as text.

    ``config`` is None where the file is not recognised or ``problem`` prevents it; its entries named in ``assumed`` are
    nowhere stated. For a Wan base only the sizes in ``config`` mean anything. ``misfit``: how the weights differ from
    the network that ``config`` describes. ``run`` is the recipe of a Uni-ViGU, None for other files.
    """

    checkpoint: Checkpoint
    config: ModelConfig | None = None
    assumed: tuple[str, ...] = ()
    misfit: Misfit = field(default_factory=Misfit)
    problem: str = ""
    run: RunConfig | None = None

    @property
    def complete(self) -> bool:
        """Whether the network can be loaded."""
        return self.config is not None and self.misfit == Misfit() and not self.problem

    @property
    def dtypes(self) -> dict[str, int]:
        """Parameters by dtype, most first."""
        counts: Counter[str] = Counter()
        for stored in self.checkpoint.weights.tensors.values():
            counts[stored.dtype] += stored.numel
        return dict(counts.most_common())

    @property
    def parts(self) -> dict[str, int]:
        """Parameters by part, in reading order; scales and derived buffers are not parameters."""
        counts = Counter(dict.fromkeys(_NETWORK_PARTS, 0))
        for name in self.checkpoint.names:
            counts[part_of(name)[0]] += self.checkpoint.stored(name).numel
        for name in self.checkpoint.others:
            first, second = name.split(".")[0], name.split(".")[1:2]
            known = {"vae": "vae", "first_stage_model": "vae", "text_encoders": f"text encoder {''.join(second)}"}
            counts[known.get(first, f"other: {first}")] += self.checkpoint.weights.tensors[name].numel
        return {part: count for part, count in counts.items() if count}

    def __str__(self) -> str:
        checkpoint, weights, misfit = self.checkpoint, self.checkpoint.weights, self.misfit
        if checkpoint.layout == "unknown":
            layout = f"not recognised: {describe_foreign(weights.tensors)}"
        else:
            whole = ", all-in-one file" if checkpoint.prefix == ALL_IN_ONE_PREFIX else ""
            layout = _LAYOUTS[checkpoint.layout] + whole + f", under {checkpoint.prefix}" * bool(checkpoint.prefix)
        count = sum(count for part, count in self.parts.items() if part in _NETWORK_PARTS)
        rows = {
            "file": f"{weights.path} ({_short(weights.nbytes)}B)",
            "layout": layout,
            "stored as": ", ".join(f"{dtype} {_short(count)}" for dtype, count in self.dtypes.items()),
            **self._about_config(),
            "parameters": _short(count) if count else "",
            **{f"  {part}": _short(count) for part, count in self.parts.items()},
            "step": "" if weights.step is None else str(weights.step),
            "ignored": weights.ignored,
            "missing": _counted(misfit.missing),
            "unexpected": _counted(misfit.unexpected),
            "shape": _counted([f"{name} {list(found)} for {list(wanted)}" for name, found, wanted in misfit.misshapen]),
            "problem": self.problem,
            "weights": "complete" if self.complete else "",
        }
        return "\n".join(f"{label:<17} {value}" for label, value in rows.items() if value)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "file": str(self.checkpoint.weights.path),
            "bytes": self.checkpoint.weights.nbytes,
            "layout": self.checkpoint.layout,
            "dtypes": self.dtypes,
            "parts": self.parts,
            "step": self.checkpoint.weights.step,
            "model": None if self.config is None else asdict(self.config),
            "assumed": list(self.assumed),
            "run": None if self.run is None else asdict(self.run),
            "missing": list(self.misfit.missing),
            "unexpected": list(self.misfit.unexpected),
            "wrong shape": [name for name, _, _ in self.misfit.misshapen],
            "problem": self.problem,
            "complete": self.complete,
        }

    def _about_config(self) -> dict[str, str]:
        """Rows on the configuration; those without a value are left out."""
        c = self.config
        if c is None:
            return {}

        def known(name: str) -> str:
            return f"{getattr(c, name)}{' (assumed)' if name in self.assumed else ''}"

        rows = {
            "width": str(c.dim),
            "blocks": str(c.num_layers),
            "heads": f"{known('num_heads')} of {c.head_dim}",
            "feed-forward": str(c.ffn_dim),
            "latent channels": str(c.in_dim),
            "prompt condition": f"width {c.text_dim}",
        }
        discrete = c.text_flow == "discrete"
        if self.checkpoint.is_uni_vigu:
            rows |= {
                "vocabulary": f"{c.token_rows} rows",
                "text flow": known("text_flow"),
                "source": known("source") if discrete else "Gaussian noise",
                "latent space": known("latent_space"),
                "v2t attention": known("v2t_attention"),
                "kappa exponent": known("kappa_exponent") if discrete else "",
                "text rotary": about_frequencies(c),
                "time rounding": "" if c.time_rounding == "none" else c.time_rounding,
                "held parts": "" if c.held_parts == "noised" else c.held_parts,
            }
        if self.run is not None:
            rows |= {
                "text states": self.run.text_states,
                "end of text": self.run.end_of_text,
                "checked": self.run.checked or "never: run check on it",
            }
        return rows


def inspect_checkpoint(path: str | Path) -> CheckpointReport:
    """Report on any weights file from its table of contents: Uni-ViGU, Wan base, or foreign.

    Raises UniViGUError when the file is missing, damaged, unsafe or no weights file.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.layout == "unknown":
        return CheckpointReport(checkpoint)
    problems = []
    try:
        checkpoint.require_floats()
    except UniViGUError as error:
        problems.append(str(error))
    try:
        config, assumed = model_config(checkpoint, Overrides(), vocab_size=1)
    except UniViGUError as error:
        return CheckpointReport(checkpoint, problem="; ".join([*problems, str(error)]))
    run = run_and_card(checkpoint).run if checkpoint.is_uni_vigu else None
    return CheckpointReport(checkpoint, config, assumed, compare(checkpoint, config), "; ".join(problems), run)


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names else ""


def _short(count: int) -> str:
    """A count in three figures: 3.05G, 61.2M, 1.5k."""
    value = float(count)
    for unit in ("", "k", "M"):
        if value < 1000:
            return f"{value:.3g}{unit}" if unit else str(count)
        value /= 1000
    return f"{value:.3g}G"
