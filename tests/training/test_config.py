"""A run's configuration: right, or refused by the name of its entry; and what docs/train.md says of it is true."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from recipes.worlds.recipe import RUNS
from uvg_core.data.settings import Data
from uvg_core.errors import UniViGUError
from uvg_core.settings import fields_of
from uvg_core.training.config import FREE_AT_RESUME, Times, TrainConfig, changed, from_dict, load_config
from uvg_core.yaml_file import read_yaml

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
BASE: dict[str, Any] = {"stage": "recall", "model": "base.safetensors", "data": "clips", "out": "runs/a", "steps": 10}
SECTIONS = {name: f.default_factory for name, f in fields_of(TrainConfig).items() if f.default_factory is not None}


def make(**changes: Any) -> TrainConfig:
    return from_dict(TrainConfig, {**BASE, **changes})


def nested(name: str, value: Any) -> dict[str, Any]:
    """``a.b`` as the entries of a file."""
    section, _, entry = name.partition(".")
    return {section: {entry: value}} if entry else {section: value}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- what is read -----------------------------------------------------------------------------------------------------


def test_what_is_not_said_is_the_default() -> None:
    config = make()
    assert config == TrainConfig(**BASE)
    assert config.video_times == Times("shifted", uniform_share=0.5)
    assert config.cache_folder == Path("runs/a/cache")
    assert make(cache="elsewhere").cache_folder == Path("elsewhere")


def test_a_section_may_say_only_some_of_its_entries() -> None:
    config = make(optimizer={"rate": 3e-4}, jobs={"joint": 0.0}, video_times={"shift": 5.0}, text_times={"std": 2})
    assert (config.optimizer.rate, config.optimizer.warmup) == (3e-4, TrainConfig(**BASE).optimizer.warmup)
    assert (config.jobs.joint, config.jobs.text_to_video) == (0.0, 0.4)
    # The two sections of times have one type and different defaults.
    assert config.video_times == Times("shifted", shift=5.0, uniform_share=0.5)
    assert config.text_times == Times("uniform", std=2.0)


def test_numbers_as_yaml_reads_them(tmp_path: Path) -> None:
    lines = "\n".join(f"{name}: {value}" for name, value in BASE.items())
    config = load_config(write(tmp_path, f"{lines}\noptimizer: {{rate: 1e-4, clip: 2}}\nlora: {{alpha: 8}}\n"))
    assert config.optimizer.rate == 1e-4  # to YAML, 1e-4 without a dot is text
    assert (config.optimizer.clip, config.lora.alpha) == (2.0, 8.0)
    assert all(isinstance(value, float) for value in (config.optimizer.clip, config.lora.alpha))


def test_tuples_stand_in_brackets() -> None:
    config = make(optimizer={"betas": [0.8, 0.9]}, tokens={"prompt": [1, 20], "detail": None})
    assert config.optimizer.betas == (0.8, 0.9)
    assert (config.tokens.prompt, config.tokens.detail) == ((1, 20), None)


def test_overrides_replace_entries_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(BASE))
    assert load_config(path, out="elsewhere", steps=3) == make(out="elsewhere", steps=3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_configuration_that_ships_is_read(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.stage in path.stem or config.trains in path.stem
    again = write(tmp_path, yaml.safe_dump(config.to_dict()))
    assert load_config(again) == config


def test_there_are_configurations_for_every_stage() -> None:
    assert {path.relative_to(ROOT / "configs").as_posix() for path in FILES} >= {
        *(f"worlds/{stage}.yaml" for stage in RUNS),
        *(f"wan/{name}.yaml" for name in ("recall", "refine", "lora", "distill")),
        "worlds/distill.yaml",
    }


def test_plain_values_and_back() -> None:
    config = make(
        optimizer={"kind": "muon", "betas": [0.8, 0.9]},
        tokens={"detail": [3, 9]},
        video_times={"kind": "logit_normal", "mean": -0.5},
        wan="folder",
        device="cpu",
    )
    plain = config.to_dict()
    assert plain["optimizer"]["betas"] == [0.8, 0.9]
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert from_dict(TrainConfig, plain) == config


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 5}, "unknown entry step; did you mean steps?"),
        ({"optimiser": {}}, "unknown entry optimiser; did you mean optimizer?"),
        ({"optimizer": {"warm_up": 5}}, "unknown entry optimizer.warm_up; did you mean optimizer.warmup?"),
        ({"video_times": {"uniform_shares": 1.0}}, "did you mean video_times.uniform_share?"),
        ({"lora": {"xyzzy": 5}}, "unknown entry lora.xyzzy; expected one of rank, alpha, dropout"),
        ({7: 1}, "unknown entry 7; expected one of stage"),
    ],
)
def test_an_unknown_entry_names_the_nearest(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(UniViGUError, match=re.escape(message)):
        from_dict(TrainConfig, {**BASE, **values})


@pytest.mark.parametrize("name", list(BASE))
def test_an_entry_without_a_default_is_missed(name: str) -> None:
    with pytest.raises(UniViGUError, match=f"missing entry {name}"):
        from_dict(TrainConfig, {key: value for key, value in BASE.items() if key != name})


HUGE = 10**400
TYPES: list[tuple[str, Any, str]] = [
    ("steps", "1e4", "a whole number"),
    ("steps", 2.0, "a whole number"),
    ("steps", True, "a whole number"),
    ("steps", None, "a whole number"),
    ("stage", 1, "one of generate, recall, refine"),
    ("out", ["a"], "text"),
    ("wan", 5, "text"),
    ("compiled", "yes", "true or false"),
    ("compiled", 1, "true or false"),
    ("detail_share", "half", "a number"),
    ("detail_share", True, "a number"),
    ("loss.video", {}, "a number"),
    ("optimizer.rate", HUGE, "a number"),
    ("optimizer", 1e-4, "entries of its own"),
    ("jobs", None, "entries of its own"),
    ("optimizer.betas", 0.9, "2 values in square brackets"),
    ("optimizer.betas", [0.9], "2 values in square brackets"),
    ("optimizer.betas", [0.9, "x"], "a number"),
    ("tokens.prompt", [0, 2.5], "a whole number"),
    ("tokens.detail", "0-128", "2 values in square brackets"),
]
VALUES: list[tuple[str, Any, str]] = [
    *((name, 0, "1 or more") for name in ("steps", "batch", "accumulate")),
    *((name, "", "a path") for name in ("model", "data", "out")),
    *(
        (name, value, "a share from 0 to 1")
        for name in ("detail_share", "empty_text", "joint_shared", "two_objects")
        for value in (-0.1, 1.1, float("nan"))
    ),
    *((name, "other", "expected one of") for name in ("stage", "trains", "text_half", "precision")),
    *((name, "other", "expected one of") for name in ("text_flow", "source", "v2t_attention")),
    *(("kappa_exponent", value, "0.01 to 100") for value in (0, -1.0, float("nan"), float("inf"))),
    *(("optimizer.horizon", value, "number of steps") for value in (-1,)),
    ("seed", -1, "0 or more"),
    ("seed", HUGE, "0 or more"),
    ("embedding_std", 0, "above 0"),
    ("embedding_std", float("inf"), "above 0"),
    *(
        (f"jobs.{name}", value, "0 or more")
        for name in ("text_to_video", "video_to_text", "joint")
        for value in (-1, float("nan"), float("inf"))
    ),
    *((f"dropout.{name}", 1.5, "from 0 to 1") for name in ("text_to_video", "video_to_text", "joint")),
    *(
        (f"{section}.{name}", value, expected)
        for section in ("video_times", "text_times")
        for name, value, expected in (
            ("kind", "normal", "uniform, logit_normal, shifted"),
            ("mean", float("nan"), "a number"),
            ("std", 0, "above 0"),
            ("shift", 0, "above 0"),
            ("shift", float("inf"), "above 0"),
            ("uniform_share", 2, "from 0 to 1"),
        )
    ),
    ("loss.discrete", "mse", "cross_entropy, generalised_kl"),
    *((f"loss.{name}", -1, "0 or more") for name in ("video", "text", "anchor", "padding")),
    ("loss.text", float("inf"), "0 or more"),
    ("optimizer.kind", "sgd", "adamw, adamw8bit, muon"),
    *((f"optimizer.{name}", 0, "above 0") for name in ("rate", "muon_rate", "clip")),
    ("optimizer.betas", [0.9, 1.0], "below 1"),
    ("optimizer.ema", 1, "below 1"),
    ("optimizer.final", 2, "from 0 to 1"),
    ("optimizer.warmup", -1, "number of steps"),
    ("optimizer.weight_decay", -1, "0 or more"),
    ("lora.rank", 0, "1 to 4096"),
    ("lora.alpha", 0, "above 0"),
    ("lora.alpha", float("nan"), "above 0"),
    ("lora.dropout", 1, "below 1"),
    ("tokens.prompt", [9, 5], "the smaller first"),
    ("tokens.detail", [-1, 5], "the smaller first"),
    *((f"keep.{name}", -1, "a whole number") for name in ("checkpoint_every", "log_every", "sample_every")),
    ("keep.checkpoints", 0, "a whole number"),
]


@pytest.mark.parametrize(("name", "value", "expected"), [*TYPES, *VALUES])
def test_a_wrong_value_is_refused_by_name(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UniViGUError) as refused:
        make(**nested(name, value))
    words = str(refused.value)
    section, _, entry = name.partition(".")
    assert name in words or (section in words and entry in words)
    assert expected in words
    assert len(words) < 300


def test_jobs_need_a_share_somewhere() -> None:
    with pytest.raises(UniViGUError, match="jobs: every share is 0"):
        make(jobs={"text_to_video": 0, "video_to_text": 0, "joint": 0})


def test_generate_has_nothing_to_teach_the_text_half() -> None:
    with pytest.raises(UniViGUError, match="stage: generate with trains: text"):
        make(stage="generate", trains="text")


FILE = "stage: recall\nmodel: a\ndata: b\nout: c\nsteps: 3\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: [recall", "line 1, column 15: not valid YAML (while parsing a flow sequence: expected"),
        ("data: 2001-99-99", "not valid YAML"),
        ("a: &a [*a", "not valid YAML"),
        ("just words", "found 'just words'; expected entries such as"),
        ("", "has no entries"),
        ("stage: recall", "missing entry model"),
        ("stage: recall\nmodle: a", ": line 2, column 1: unknown entry modle; did you mean model?"),
        (
            f"{FILE}optimizer:\n  rate: quick",
            ": line 7, column 9: optimizer.rate is 'quick'; expected a number above 0",
        ),
        (f"{FILE}optimizer: {{betas: [0.9, x]}}", ": line 6, column 26: optimizer.betas is 'x'; expected 2 values"),
        (f"{FILE}clip: {{height: 50}}", ": line 6, column 7: clip.height is 50"),
        (f"{FILE}loss:\n  vdieo: 2", ": line 7, column 3: unknown entry loss.vdieo; did you mean loss.video?"),
        (f"{FILE}steps: 4", ": line 6, column 1: steps is already set in line 5; remove one of them"),
        (
            f"{FILE}keep: {{log_every: 1, log_every: 2}}",
            ": line 6, column 22: keep.log_every is already set in line 6",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UniViGUError, match=re.escape(str(path))) as refused:
        load_config(path)
    assert message in str(refused.value)


def test_paths_in_a_file_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("CLIPS", "/clips")
    text = "stage: recall\nmodel: ~/a.pth\ndata: $CLIPS/cats\nout: '${CLIPS}/$UNSET'\nsteps: 1\n"
    config = load_config(write(tmp_path, text))
    assert (config.model, config.data, config.out) == ("/home/me/a.pth", "/clips/cats", "/clips/$UNSET")
    assert make(model="~/a.pth").model == "~/a.pth"  # of a caller who means what he writes, as the nodes do


def test_an_entry_that_comes_from_an_anchor_is_no_second_one(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, f"{FILE}loss: &a {{video: 2}}\nlora: {{rank: 4}}\n"))
    assert config.loss.video == 2
    text = f"{FILE}video_times: &t {{kind: uniform, std: 2.0}}\ntext_times: {{<<: *t, std: 3.0}}\n"
    config = load_config(write(tmp_path, text))
    assert (config.text_times.kind, config.text_times.std) == ("uniform", 3.0)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UniViGUError, match=r"gone\.yaml: cannot be read"):
        load_config(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes("stage: für".encode("latin-1"))
    with pytest.raises(UniViGUError, match=r"latin\.yaml: is not UTF-8 text"):
        load_config(tmp_path / "latin.yaml")


# --- going on with a run ----------------------------------------------------------------------------------------------


def test_only_what_changes_the_result_counts_as_changed() -> None:
    old = make().to_dict()
    assert changed(old, old) == []
    other: dict[str, Any] = {"keep": {"log_every": 1}, "compiled": True, "checkpointing": True}
    other |= {"batch": 2, "accumulate": 4}  # how many clips a step takes in all is checked on its own
    other |= dict.fromkeys(("out", "cache", "wan", "device"), "elsewhere")
    assert set(other) == set(FREE_AT_RESUME)
    assert changed(old, make(**other).to_dict()) == []
    # These are names of top-level entries; inside a section they would mean something else.
    assert changed({"loss": {"out": 1}}, {"loss": {"out": 2}}) == ["loss.out: 1 -> 2"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("seed", 1, "seed: 0 -> 1"),
        ("steps", 11, "steps: 10 -> 11"),
        ("optimizer.rate", 2e-4, "optimizer.rate: 0.0001 -> 0.0002"),
        ("optimizer.betas", [0.9, 0.99], "optimizer.betas: [0.9, 0.98] -> [0.9, 0.99]"),
        ("video_times.shift", 5.0, "video_times.shift: 3.0 -> 5.0"),
        ("text_flow", "embedding", "text_flow: None -> embedding"),
    ],
)
def test_a_change_is_told_with_both_values(name: str, value: Any, line: str) -> None:
    assert changed(make().to_dict(), make(**nested(name, value)).to_dict()) == [line]


def test_entries_of_another_version_are_changes_too() -> None:
    old = make().to_dict()
    del old["seed"]
    assert changed({**old, "loss": {**old["loss"], "gone": 1}}, make().to_dict()) == [
        "loss.gone: 1 -> None",
        "seed: None -> 0",
    ]


# --- the documentation ------------------------------------------------------------------------------------------------


def tables() -> dict[str, dict[str, str]]:
    """The tables of docs/train.md whose first column is ``entry``: defaults by entry, by the table's heading; a
    heading of two sections has a column of defaults for each."""
    found: dict[str, dict[str, str]] = {}
    heading, columns = "", []
    for line in (ROOT / "docs" / "train.md").read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading, columns = line.lstrip("# ").replace("`", ""), []
        elif line.startswith("|"):
            cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            if cells[0] == "entry":
                columns = [heading if cell == "default" else cell for cell in cells[1:-1]]
                found |= {name: {} for name in columns}
            elif columns and set(cells[0]) != {"-"}:
                for name, cell in zip(columns, cells[1:-1], strict=True):
                    found[name][cells[0]] = cell
    return found


def as_read(folder: Path, cells: dict[str, str]) -> dict[str, Any]:
    """Entries as the command reads them from a file."""
    return read_yaml(write(folder, "".join(f"{name}: {cell}\n" for name, cell in cells.items())), "a run")


def test_the_documentation_knows_every_entry_and_its_default(tmp_path: Path) -> None:
    told = tables()
    assert set(told) == {"Top-level entries", "Data", *SECTIONS}
    assert set(told["Data"]) == {field.name for field in fields(Data)}
    assert told["Data"].pop("path") == "required"
    assert from_dict(Data, {"path": "clips", **as_read(tmp_path, told["Data"])}) == Data("clips")
    for name, make_section in SECTIONS.items():
        usual = make_section()
        assert set(told[name]) == {f.name for f in fields(usual)}, name
        assert from_dict(type(usual), as_read(tmp_path, told[name])) == usual, name
    top = told["Top-level entries"]
    kinds = get_type_hints(TrainConfig)
    assert set(top) == {name for name, kind in kinds.items() if not is_dataclass(kind)}
    assert {name for name, cell in top.items() if cell == "required"} == set(BASE)
    usual_top = as_read(tmp_path, {name: cell for name, cell in top.items() if name not in BASE})
    assert from_dict(TrainConfig, {**BASE, **usual_top}) == TrainConfig(**BASE)


def test_the_documentation_says_what_may_change_at_resume() -> None:
    text = (ROOT / "docs" / "train.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("May change:"))
    assert set(re.findall(r"`(\w+)`", line)) == set(FREE_AT_RESUME)


@pytest.mark.parametrize("block", range(4))
def test_the_configurations_in_the_documentation_are_right(block: int, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "train.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    values = read_yaml(write(tmp_path, blocks[block]), "a run")
    assert from_dict(TrainConfig, {**BASE, **values})
