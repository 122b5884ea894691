"""Does ``check`` decide right? Small models, trained in every combination, and what it says of each.

    python benchmarks/check_models.py WORKDIR [--only NAME ...] [--judge]

Each model is trained from nothing on little worlds and on pans over two photographs (scikit-learn's), in one of the
four combinations of latent space and text states, with the embedded model's VAE, text encoder and tokenizer; none of
them has seen a clip that ``check`` looks at. Twenty (``set``) are what the thresholds of ``uvg_core/evidence.py`` were
chosen on, twelve of other seeds and lengths of training (``shown``) were trained and judged afterwards, three for each
combination. ``--judge`` trains nothing and judges what is there. About a minute a model on one core. Numbers go into
benchmarks/numbers/check_models.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import saved  # noqa: E402

from recipes.worlds.grammar import COLOURS  # noqa: E402
from recipes.worlds.recipe import initialise  # noqa: E402
from recipes.worlds.source import WorldSource  # noqa: E402
from uvg_core.checkpoint import load_model, read_config, save_model  # noqa: E402
from uvg_core.checkpoint.read import open_weights  # noqa: E402
from uvg_core.config import CheckpointConfig, ModelConfig  # noqa: E402
from uvg_core.data.shards import Sample as Clip  # noqa: E402
from uvg_core.data.sources import digest  # noqa: E402
from uvg_core.media.text_encoder import TextEncoder, as_plain_t5  # noqa: E402
from uvg_core.media.vae import to_latent_space  # noqa: E402
from uvg_core.model import UniViGU  # noqa: E402
from uvg_core.pipeline.check import Check, clocked, thoroughness  # noqa: E402
from uvg_core.pipeline.evidence import Sample, Verdict, weigh  # noqa: E402
from uvg_core.pipeline.pipeline import EMBEDDED_MODEL, Pipeline  # noqa: E402
from uvg_core.training.config import TrainConfig, from_dict  # noqa: E402
from uvg_core.training.objective import plain_attention  # noqa: E402
from uvg_core.training.run import make_accelerator  # noqa: E402
from uvg_core.training.start import starting_network  # noqa: E402
from uvg_core.training.trainer import Trainer  # noqa: E402

SIZES: dict[str, Any] = {"dim": 64, "ffn_dim": 192, "num_heads": 2, "num_layers": 3, "freq_dim": 64}
CLIPS, BATCH = 768, 16
PANS = 0.6  # share of the clips that are pans over photographs
PHOTOS = {"china.jpg": "temple", "flower.jpg": "flower"}
STEPS = ("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1)), ("nowhere", (0, 0))


@dataclass(frozen=True)
class Made:
    """One model of the twenty."""

    group: str
    latent_space: str
    text_states: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.group}_{self.latent_space}_{self.text_states}_{self.seed}"


COMBINATIONS = (("normalised", "umT5"), ("normalised", "release"), ("raw", "umT5"), ("raw", "release"))


def made(group: str, seed: int, lengths: tuple[int, ...]) -> list[Made]:
    """Models of these lengths of training: the four combinations in turn."""
    return [Made(group, *COMBINATIONS[n % 4], seed + n, steps) for n, steps in enumerate(lengths)]


MODELS = [
    *made("set", 0, (600, 600, 600, 600, 400, 400, 400, 400, 900, 900)),
    *made("set", 100, (500, 500, 700, 700, 700, 700, 500, 500, 350, 350)),
    *made("shown", 200, (400, 400, 400, 400, 550, 550, 550, 550, 800, 800, 800, 800)),
]


@cache
def photo(name: str) -> Tensor:
    """A photograph of scikit-learn's, float ``[3,H,W]``, 0 to 255."""
    from sklearn.datasets import load_sample_image

    return torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).float()


def pan(generator: torch.Generator, side: int, frames: int) -> tuple[Tensor, str]:
    """A window that moves over a photograph, uint8 ``[T,S,S,3]``, and a caption that says what and where to."""
    name = list(PHOTOS)[int(torch.randint(len(PHOTOS), (), generator=generator))]
    picture = photo(name)
    u = torch.rand(4, generator=generator).tolist()
    window = int(64 + u[0] * (min(picture.shape[1:]) / 1.3 - 65))
    way, (dx, dy) = STEPS[int(u[1] * len(STEPS))]
    reach = int(0.3 * window)
    room = [picture.shape[2] - window - reach * abs(dx), picture.shape[1] - window - reach * abs(dy)]
    x, y = (int(u[2 + n] * max(room[n], 0)) for n in (0, 1))
    x, y = x + reach * (dx < 0), y + reach * (dy < 0)
    views = []
    for n in range(frames):
        left, top = (a + d * reach * n // (frames - 1) for a, d in ((x, dx), (y, dy)))
        views.append(picture[:, top : top + window, left : left + window])
    clip = F.interpolate(torch.stack(views), (side, side), mode="bilinear", antialias=True).clamp(0, 255)
    mean = clip.mean((0, 2, 3))
    colours = torch.tensor(list(COLOURS.values())).float()
    colour = list(COLOURS)[int((colours - mean).square().sum(1).argmin())]
    moves = "stays still" if way == "nowhere" else f"moves {way}"
    return clip.round().to(torch.uint8).permute(0, 2, 3, 1), f"a {colour} {PHOTOS[name]} {moves}"


def footage(index: int, side: int, frames: int) -> tuple[Tensor, str]:
    """Clip ``index`` of the training data and its caption: a pan, or a little world."""
    generator = torch.Generator().manual_seed(int(digest([0, index])[:8], 16))
    if float(torch.rand((), generator=generator)) < PANS:
        return pan(generator, side, frames)
    item = WorldSource(index + 1, side=side, frames=frames, pairs=0.0).item(index)
    return item.pixels, item.detail or item.prompt


class Clips:
    """The training data as ``Trainer`` reads them, in one combination of latent space and text states. What all
    combinations share is computed once and kept in WORKDIR."""

    fingerprint, left_out = "pans and worlds", ()

    def __init__(self, folder: Path, one: Made) -> None:
        path = folder / "footage.pt"
        if not path.exists():
            torch.save(_encoded(), path)
        kept = torch.load(path, weights_only=True)
        self.latents = to_latent_space(kept["raw"], one.latent_space)
        self.ids, self.states = kept["ids"], kept[one.text_states]
        self.rows = [len(ids) if one.text_states == "umT5" else self.states.shape[1] for ids in self.ids]
        self.empty_ids, self.empty_states = kept["empty_ids"], self.states[-1][: self.rows[-1]]
        self.details = len(self)
        self.longest_prompt = self.longest_detail = max(map(len, self.ids))

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> Clip:
        texts = self.ids[index], self.states[index][: self.rows[index]]
        return Clip(self.latents[index], *texts, *texts, f"clip {index}")


@torch.no_grad()
def _encoded() -> dict[str, Any]:
    """Raw latents ``[N,16,F,h,w]``, ids, and states ``[N+1,S,E]`` of both kinds, the empty prompt's last."""
    pipe = Pipeline(device="cpu")
    run, tokenizer = pipe.config.run, pipe.tokenizer
    pixels, captions = zip(*(footage(n, run.height, run.frames) for n in range(CLIPS)), strict=True)
    texts, found = [*captions, ""], {}
    with pipe.components.using("vae") as vae:
        rows = [torch.stack(pixels[n : n + 16]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1 for n in range(0, CLIPS, 16)]
        found["raw"] = torch.cat([vae.encode(row).latent_dist.mode().float() for row in rows])
    with pipe.components.using("encoder") as encoder:
        for kind, way in (("umT5", nullcontext()), ("release", as_plain_t5(encoder))):
            states = TextEncoder(encoder, tokenizer, kind)
            with way:
                found[kind] = torch.cat([states(texts[n : n + 64]).float() for n in range(0, len(texts), 64)])
    found["ids"] = [torch.tensor(tokenizer.ids(text)) for text in texts]
    return {**found, "empty_ids": found["ids"][-1]}


def start(folder: Path, one: Made, heads: bool = False) -> Path:
    """An untrained network beside the embedded model's other parts, which says what it is trained for. ``heads``: one
    that says something, with a head at random in place of one at zero."""
    path = folder / f"{one.name}_start.safetensors"
    if not path.exists():
        config, weights = read_config(EMBEDDED_MODEL), open_weights(EMBEDDED_MODEL)
        model = UniViGU(
            ModelConfig(
                **SIZES,
                text_dim=config.model.text_dim,
                vocab_size=config.model.vocab_size,
                latent_space=one.latent_space,
            )
        )
        initialise(model, one.seed)
        if heads:
            torch.nn.init.xavier_uniform_(model.head.head.weight)
        extra = {name: weights.read(name) for name in weights.tensors if name.startswith(("vae.", "text_encoders."))}
        save_model(model, path, run=replace(config.run, text_states=one.text_states, checked=""), extra=extra)
    return path


def trained(folder: Path, one: Made) -> Path:
    """The model, trained first where it is missing."""
    path = folder / one.name / "model.safetensors"
    if path.exists():
        return path
    begin = start(folder, one)
    config = from_dict(
        TrainConfig,
        {
            "stage": "recall",
            "model": str(begin),
            "data": "made by benchmarks/check_models.py",
            "out": str(folder / one.name),
            "steps": one.steps,
            "batch": BATCH,
            "seed": one.seed,
            "device": "cpu",
            "jobs": {"text_to_video": 0.8, "video_to_text": 0.15, "joint": 0.05},
            "empty_text": 0.5,  # as a Wan base, it hears its prompt through the condition alone
            "video_times": {"kind": "logit_normal", "uniform_share": 0.3},
            "optimizer": {"kind": "muon", "rate": 2e-3, "muon_rate": 0.02, "warmup": 50, "ema": 0.98},
            "keep": {"checkpoint_every": 0, "log_every": 100},
        },
    )
    facts = read_config(begin)
    data: Any = Clips(folder, one)
    model = starting_network(config, vocab_size=facts.model.vocab_size, attention=plain_attention, dtype=torch.float32)
    facts = CheckpointConfig(model.config, facts.run)
    began = time.perf_counter()
    Trainer(config, model, data, facts, make_accelerator(config)).run(False)
    print(f"{one.name}: {one.steps} steps in {time.perf_counter() - began:.0f} s", flush=True)
    return path


def looks(folder: Path) -> list[Sample]:
    """What ``check`` looks at: its clips and captions through the embedded model's VAE and text encoder."""
    path = folder / "looks.pt"
    if not path.exists():
        torch.save([vars(one) for one in Check(Pipeline(device="cpu")).samples(9, 48, 48)], path)
    return [Sample(**one) for one in torch.load(path, weights_only=True)]


def judged(path: Path, samples: list[Sample]) -> Verdict:
    """The verdict on a trained model, as ``check`` gives it."""
    network = load_model(path, dtype=torch.float32)
    return weigh(clocked(network, "none"), clocked(network, "bfloat16"), samples, **thoroughness(large=False))


def row(one: Made, path: Path, samples: list[Sample]) -> dict[str, Any]:
    verdict = judged(path, samples)
    right = {
        "latent space": {one.latent_space: True, "": None}.get(verdict.space.best, False),
        "text states": {one.text_states: True, "": None}.get(verdict.states.best, False),
    }
    print(f"{one.name:<30} {one.steps:5} steps, skill {verdict.skill:.2f}", *verdict.answers, sep="\n    ", flush=True)
    return {**vars(one), "right": right, **verdict.to_json()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--only", nargs="+", help="names of models")
    parser.add_argument("--judge", action="store_true", help="train nothing")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    samples, rows = looks(args.workdir), []
    for one in (one for one in MODELS if not args.only or one.name in args.only):
        path = args.workdir / one.name / "model.safetensors"
        if not args.judge:
            path = trained(args.workdir, one)
        if path.exists():
            rows.append(row(one, path, samples))
    untrained = [replace(MODELS[0], group="untrained", seed=seed, steps=0) for seed in range(3)]
    for one in untrained:
        rows.append(row(one, start(args.workdir, one, heads=True), samples))
    for question in ("latent space", "text states"):
        for group in dict.fromkeys(one["group"] for one in rows):
            answers = [one["right"][question] for one in rows if one["group"] == group]
            counts = [sum(answer is kind for answer in answers) for kind in (True, None, False)]
            print(f"{group}, {question}: {counts[0]} right, {counts[1]} cannot tell, {counts[2]} wrong")
    if not args.only:
        saved.save("check_models", rows)


if __name__ == "__main__":
    main()
