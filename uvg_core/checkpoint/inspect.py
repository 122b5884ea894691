"""What is in a checkpoint, told without loading it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..config import ModelConfig, RunConfig
from ..errors import UniViGUError
from .config import about_frequencies, model_config
from .detect import UNI_VIGU_LAYOUTS, Network, describe_foreign, find_network, require_floats
from .facts import run_and_card
from .fit import Misfit, compare, without_text_half
from .read import WeightFile, open_weights
from .write import ALL_IN_ONE_PREFIX

_LAYOUTS = {
    "native": "Uni-ViGU, native",
    "release": "Uni-ViGU, the release's names",
    "wan": "plain Wan base, original names",
    "diffusers": "plain Wan base, diffusers names",
}
_NETWORK_PARTS = ("video half", "text experts", "token embedding", "text head", "text clock")


@dataclass(frozen=True)
class CheckpointReport:
    """What a file holds; ``str()`` gives it as text.

    ``layout`` is ``native``, ``release``, ``wan``, ``diffusers`` or ``unknown``; ``dtypes`` and ``parts`` count
    parameters. ``config`` is None where the file is not recognised or ``problem`` prevents it; its entries named in
    ``assumed`` are nowhere stated. For a Wan base only the sizes in ``config`` mean anything. ``ignored`` counts and
    names what a trainer left beside the weights. ``run`` is the recipe of a Uni-ViGU, None for other files.
    """

    path: Path
    nbytes: int
    layout: str
    prefix: str = ""
    dtypes: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    config: ModelConfig | None = None
    assumed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    step: int | None = None
    ignored: str = ""
    foreign: str = ""
    problem: str = ""
    run: RunConfig | None = None

    @property
    def complete(self) -> bool:
        """Whether the network can be loaded."""
        return self.config is not None and not (self.missing or self.unexpected or self.misshapen or self.problem)

    def __str__(self) -> str:
        rows = [("file", f"{self.path} ({_short(self.nbytes)}B)")]
        if self.layout == "unknown":
            rows.append(("layout", f"not recognised: {self.foreign}"))
        else:
            whole = ", all-in-one file" if self.prefix == ALL_IN_ONE_PREFIX else ""
            under = f", under {self.prefix}" if self.prefix else ""
            rows.append(("layout", _LAYOUTS[self.layout] + whole + under))
        rows.append(("stored as", ", ".join(f"{dtype} {_short(count)}" for dtype, count in self.dtypes.items())))
        rows += self._about_config()
        network = sum(count for part, count in self.parts.items() if part in _NETWORK_PARTS)
        if network:
            rows.append(("parameters", _short(network)))
        rows += [(f"  {part}", _short(count)) for part, count in self.parts.items()]
        if self.step is not None:
            rows.append(("step", str(self.step)))
        if self.ignored:
            rows.append(("ignored", self.ignored))
        for label, names in (("missing", self.missing), ("unexpected", self.unexpected), ("shape", self.misshapen)):
            if names:
                rows.append((label, f"{len(names)}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"))
        if self.problem:
            rows.append(("problem", self.problem))
        elif self.layout != "unknown" and self.complete:
            rows.append(("weights", "complete"))
        return "\n".join(f"{label:<17} {value}" for label, value in rows)

    def _about_config(self) -> list[tuple[str, str]]:
        c = self.config
        if c is None:
            return []

        def known(name: str) -> str:
            return f"{getattr(c, name)}{' (assumed)' if name in self.assumed else ''}"

        rows = [
            ("width", str(c.dim)),
            ("blocks", str(c.num_layers)),
            ("heads", f"{known('num_heads')} of {c.head_dim}"),
            ("feed-forward", str(c.ffn_dim)),
            ("latent channels", str(c.in_dim)),
            ("prompt condition", f"width {c.text_dim}"),
        ]
        if self.layout in UNI_VIGU_LAYOUTS:
            rows += [
                ("vocabulary", f"{c.token_rows} rows"),
                ("text flow", known("text_flow")),
                ("source", known("source")) if c.text_flow == "discrete" else ("source", "Gaussian noise"),
                ("latent space", known("latent_space")),
                ("v2t attention", known("v2t_attention")),
            ]
            rows += [("kappa exponent", known("kappa_exponent"))] if c.text_flow == "discrete" else []
            rows += [("text rotary", about_frequencies(c))] if c.text_inv_freq is not None else []
            rows += [("time rounding", c.time_rounding)] if c.time_rounding != "none" else []
        if self.run is not None:
            stated = (("text states", self.run.text_states), ("end of text", self.run.end_of_text))
            rows += [(label, value) for label, value in stated if value]
            rows.append(("checked", self.run.checked or "never: run check on it"))
        return rows


def inspect_checkpoint(path: str | Path) -> CheckpointReport:
    """Report on any weights file from its table of contents: Uni-ViGU, Wan base, or foreign.

    Raises UniViGUError when the file is missing, damaged, unsafe or no weights file.
    """
    weights = open_weights(path)
    network = find_network(weights)
    config, assumed, misfit, problem = _network_facts(weights, network)
    dtypes: Counter[str] = Counter()
    for stored in weights.tensors.values():
        dtypes[stored.dtype] += stored.numel
    return CheckpointReport(
        path=weights.path,
        nbytes=weights.nbytes,
        layout=network.layout,
        prefix=network.prefix,
        dtypes=dict(dtypes.most_common()),
        parts=_parts(weights, network),
        config=config,
        assumed=assumed,
        missing=misfit.missing,
        unexpected=misfit.unexpected,
        misshapen=tuple(f"{n} {list(found)} for {list(expected)}" for n, found, expected in misfit.misshapen),
        step=weights.step,
        ignored=weights.ignored,
        foreign=describe_foreign(weights.tensors) if network.layout == "unknown" else "",
        problem=problem,
        run=None if config is None or network.layout not in UNI_VIGU_LAYOUTS else run_and_card(weights).run,
    )


def _network_facts(weights: WeightFile, network: Network) -> tuple[ModelConfig | None, tuple[str, ...], Misfit, str]:
    """Configuration, assumed entries, misfit, and what stands in the way of them in words."""
    nothing = Misfit((), (), ())
    if network.layout == "unknown":
        return None, (), nothing, ""
    problems = []
    try:
        require_floats(weights, network)
    except UniViGUError as error:
        problems.append(str(error))
    try:
        config, assumed = model_config(weights, network, vocab_size=1)
    except UniViGUError as error:
        return None, (), nothing, "; ".join([*problems, str(error)])
    misfit = compare(weights, network, config)
    if network.layout not in UNI_VIGU_LAYOUTS:
        misfit = without_text_half(misfit)
    return config, assumed, misfit, "; ".join(problems)


def _parts(weights: WeightFile, network: Network) -> dict[str, int]:
    """Parameters by part, in reading order; scales and derived buffers are not parameters."""
    counts = Counter(dict.fromkeys(_NETWORK_PARTS, 0))
    for name, stored in network.names.items():
        counts[_part(name)] += weights.tensors[stored].numel
    for name in network.others:
        parts = name.split(".")
        known = {"vae": "vae", "first_stage_model": "vae", "text_encoders": f"text encoder {parts[1:2] and parts[1]}"}
        counts[known.get(parts[0], f"other: {parts[0]}")] += weights.tensors[name].numel
    return {part: count for part, count in counts.items() if count}


def _part(name: str) -> str:
    if ".ffn_t." in name:
        return "text experts"
    if name.startswith(("time_embedding_t.", "time_projection_t.")):
        return "text clock"
    return {"token_embedding": "token embedding", "text_head": "text head"}.get(name.split(".")[0], "video half")


def _short(count: int) -> str:
    """A count in three figures: 3.05G, 61.2M, 1.5k."""
    value = float(count)
    for unit in ("", "k", "M"):
        if value < 1000:
            return f"{value:.3g}{unit}" if unit else str(count)
        value /= 1000
    return f"{value:.3g}G"
