"""Laws of the training loop: one curve however it is split or interrupted, nothing lost, what learns and what not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("accelerate")

from tiny_runs import (
    ENCODERS,
    RUN,
    WAYS,
    WORDS,
    Clips,
    Stop,
    curve,
    make_config,
    make_shards,
    make_start,
    make_trainer,
    same,
)

from uvg_core.checkpoint import load_model, read_config
from uvg_core.checkpoint.read import open_weights
from uvg_core.config import CheckpointConfig
from uvg_core.data.build import build_shards
from uvg_core.data.sources import Together, TrainingClip
from uvg_core.errors import UniViGUError
from uvg_core.model import PassOptions
from uvg_core.training import checkpoints
from uvg_core.training.plan import repeated
from uvg_core.training.run import make_accelerator
from uvg_core.training.start import LORA_PREFIX, is_text_half, starting_network
from uvg_core.training.state import RunState
from uvg_core.training.trainer import Trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_start(tmp_path)
    return tmp_path


@pytest.mark.parametrize("stage", ["generate", "recall", "refine"])
@pytest.mark.parametrize("kind", ["discrete", "mask", "embedding"])
def test_the_loss_falls_in_every_stage_and_flow(tmp_path: Path, stage: str, kind: str) -> None:
    flow = {"text_flow": "embedding"} if kind == "embedding" else {"source": "mask" if kind == "mask" else "uniform"}
    make_start(tmp_path, **flow)
    config = make_config(tmp_path, stage=stage, steps=40, batch=8, optimizer={"rate": 5e-3, "warmup": 5, "ema": 0.9})
    result = make_trainer(config, make_shards(tmp_path / "cache")).run()
    entries = curve(tmp_path / "run")
    for name in ("video", "text") if stage != "generate" else ("video",):
        values = [entry[name] for entry in entries if name in entry]
        assert sum(values[-10:]) < 0.9 * sum(values[:10]), name
    assert result.finished
    assert result.file is not None
    assert load_model(result.file).config == load_model(config.model).config


def test_generalised_kl_trains(folder: Path) -> None:
    config = make_config(folder, steps=40, batch=8, loss={"discrete": "generalised_kl"}, optimizer={"rate": 5e-3})
    make_trainer(config, make_shards(folder / "cache")).run()
    values = [entry["text"] for entry in curve(folder / "run") if "text" in entry]
    assert sum(values[-10:]) < sum(values[:10])


@pytest.mark.parametrize("way", list(WAYS))
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(folder: Path, way: str) -> None:
    if "LoRA" in way:
        pytest.importorskip("peft")
    data = make_shards(folder / "cache")
    whole = make_config(folder, out=str(folder / "whole"), **WAYS[way])
    finished = make_trainer(whole, data).run()
    parts = make_config(folder, out=str(folder / "parts"), **WAYS[way])
    first = make_trainer(parts, data, watch=Stop(3)).run()
    assert (first.step, first.finished) == (3, False)
    last = make_trainer(parts, data).run(resume=True)
    assert last.finished
    assert same(curve(folder / "whole"), curve(folder / "parts"))
    assert last.file is not None
    assert finished.file is not None
    ours, theirs = open_weights(last.file), open_weights(finished.file)
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in theirs.tensors)


@pytest.mark.parametrize(("before", "after"), [((4, 1), (1, 4)), ((1, 4), (4, 1))])
def test_a_step_may_be_split_anew_at_resume(folder: Path, before: tuple[int, int], after: tuple[int, int]) -> None:
    """A step stays a step: the checkpoint at 3 is not a whole number of batches of the new split."""
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder, out=str(folder / "whole")), data).run()
    first, second = (make_config(folder, batch=batch, accumulate=parts) for batch, parts in (before, after))
    make_trainer(first, data, watch=Stop(3)).run()
    assert make_trainer(second, data).run(resume=True).finished
    assert same(curve(folder / "whole"), curve(folder / "run"), within=2e-4)


def test_killed_between_checkpoints_it_repeats_the_lost_steps(folder: Path) -> None:
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder, out=str(folder / "whole")), data).run()
    config = make_config(folder)

    def kill(step: Any, trainer: Any) -> bool:
        if step.step == 5:  # checkpoints are at 2 and 4
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        make_trainer(config, data, watch=kill).run()
    (folder / "run" / "losses.jsonl").open("a").write('{"step": 6, "lo')  # cut off while writing
    make_trainer(config, data).run(resume=True)
    assert same(curve(folder / "whole"), curve(folder / "run"))


def test_accumulation_gives_the_curve_of_one_large_batch(folder: Path) -> None:
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder, out=str(folder / "large"), batch=8), data).run()
    make_trainer(make_config(folder, out=str(folder / "small"), batch=2, accumulate=4), data).run()
    assert same(curve(folder / "large"), curve(folder / "small"), within=2e-4)


def test_a_run_may_choose_that_a_clean_video_does_not_see_the_text(folder: Path) -> None:
    config = make_config(folder, v2t_attention="one_way", jobs={"video_to_text": 1.0}, keep={"checkpoint_every": 0})
    result = make_trainer(config, make_shards(folder / "cache")).run()
    assert result.file is not None
    assert read_config(config.model).model.v2t_attention == "joint"
    assert read_config(result.file).model.v2t_attention == "one_way"


def test_a_run_may_choose_when_words_form(folder: Path) -> None:
    config = make_config(folder, kappa_exponent=2.0, steps=1)
    result = make_trainer(config, make_shards(folder / "cache")).run()
    assert result.file is not None
    written = read_config(result.file)
    assert (read_config(config.model).model.kappa_exponent, written.model.kappa_exponent) == (1.0, 2.0)
    assert written.card["recall"]["kappa_exponent"] == 2.0


def test_a_run_with_holds_writes_a_model_that_is_given_held_parts_clean(folder: Path) -> None:
    result = make_trainer(make_config(folder, hold_share=0.5, steps=2), make_shards(folder / "cache")).run()
    assert result.file is not None
    written = read_config(result.file)
    assert (written.model.held_parts, written.card["recall"]["hold_share"]) == ("clean", 0.5)
    assert load_model(result.file).config.held_parts == "clean"


@pytest.mark.parametrize(("rule", "value"), [("v2t_attention", "one_way"), ("kappa_exponent", 2.0)])
def test_a_lora_cannot_change_what_it_cannot_carry(folder: Path, rule: str, value: Any) -> None:
    with pytest.raises(UniViGUError, match=f"{rule} is {value}.*a LoRA file cannot store"):
        make_trainer(make_config(folder, trains="lora", **{rule: value}), make_shards(folder / "cache"))


@pytest.mark.slow
def test_compilation_does_not_change_the_curve(folder: Path) -> None:
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder, out=str(folder / "plain")), data).run()
    make_trainer(make_config(folder, out=str(folder / "compiled"), compiled=True), data).run()
    assert same(curve(folder / "plain"), curve(folder / "compiled"), within=1e-4)


def test_checkpointing_does_not_change_the_curve(folder: Path) -> None:
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder, out=str(folder / "plain")), data).run()
    make_trainer(make_config(folder, out=str(folder / "thrifty"), checkpointing=True), data).run()
    assert same(curve(folder / "plain"), curve(folder / "thrifty"), within=1e-5)


PROCESS = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny_runs import Stop, make_config, make_trainer
from uvg_core.data.shards import Shards
folder = Path({folder!r})
config = make_config(folder, out=str(folder / "two"), batch=4)
data = Shards(folder / "cache", in_memory=True)
make_trainer(config, data, watch=Stop(3)).run()
assert make_trainer(config, data).run(resume=True).finished
"""


def test_two_processes_give_the_curve_of_one(folder: Path) -> None:
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder, out=str(folder / "one"), batch=8), data).run()
    script = folder / "two.py"
    script.write_text(PROCESS.format(tests=str(Path(__file__).resolve().parents[1]), folder=str(folder)))
    # torchrun, as `accelerate launch` does it; the latter asks for a GPU or MPI before it starts several processes.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(curve(folder / "one"), curve(folder / "two"), within=2e-4)


def test_training_the_text_half_leaves_the_generator_bit_for_bit(folder: Path) -> None:
    config = make_config(folder, trains="text")
    result = make_trainer(config, make_shards(folder / "cache")).run()
    assert result.file is not None
    before, after = load_model(config.model), load_model(result.file)
    old = dict(before.named_parameters())
    changed = {name for name, weight in after.named_parameters() if not torch.equal(weight, old[name])}
    assert changed
    assert all(is_text_half(name) for name in changed)
    video, time = torch.randn(1, 16, 2, 4, 4), torch.tensor([300.0])
    context = torch.randn(1, RUN.context_length, before.config.text_dim)
    outputs = [
        model(video, None, time, time, context, options=PassOptions(want_logits=False)).velocity
        for model in (before, after)
    ]
    assert torch.equal(outputs[0], outputs[1])


def test_the_generate_stage_leaves_the_text_half_alone(folder: Path) -> None:
    config = make_config(folder, stage="generate")
    result = make_trainer(config, make_shards(folder / "cache")).run()
    old = dict(load_model(config.model).named_parameters())
    after = load_model(result.file).named_parameters()
    changed = {name for name, weight in after if not torch.equal(weight, old[name])}
    assert changed
    assert not any(is_text_half(name) for name in changed)


def test_a_lora_is_written_in_comfyui_names_and_holds_what_was_learnt(folder: Path) -> None:
    pytest.importorskip("peft")
    config = make_config(folder, trains="lora", lora={"rank": 3, "alpha": 6})
    trainer = make_trainer(config, make_shards(folder / "cache"))
    result = trainer.run()
    file = open_weights(result.file)
    layers = {name.removesuffix(".lora_A.weight") for name in file.tensors if name.endswith(".lora_A.weight")}
    assert f"{LORA_PREFIX}blocks.1.ffn_t.2" in layers
    assert len(layers) == 2 * 12  # blocks x (4 + 4 attention projections, 2 + 2 layers of experts)
    base = load_model(config.model, dtype=torch.float32)
    with torch.no_grad():
        for layer in layers:
            up, down = file.read(f"{layer}.lora_B.weight"), file.read(f"{layer}.lora_A.weight")
            scale = float(file.read(f"{layer}.alpha")) / down.shape[0]
            base.get_submodule(layer.removeprefix(LORA_PREFIX)).weight += scale * up @ down
    video, time, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([300.0]), torch.tensor([[3, 5, 1]])
    context = torch.randn(1, RUN.context_length, base.config.text_dim)
    with trainer.averaged() as learnt, torch.no_grad():
        for ours, theirs in zip(
            learnt(video, text, time, time, context), base(video, text, time, time, context), strict=True
        ):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_run_goes_on_from_a_lora(folder: Path) -> None:
    """What it starts with is what the file adds to the weights, also at another alpha and a higher rank; and it may be
    moved before the run is resumed."""
    pytest.importorskip("peft")
    data = make_shards(folder / "cache")
    first = make_trainer(make_config(folder, trains="lora", lora={"rank": 3, "alpha": 6}), data).run().file
    second = folder / "first.safetensors"
    first.rename(second)
    config = make_config(folder, out=str(folder / "on"), trains="lora", lora={"rank": 4, "start": str(second)})
    trainer = make_trainer(config, data, watch=Stop(4))
    merged = load_model(config.model, dtype=torch.float32, loras=[second]).state_dict()
    for name, layer in trainer.network.named_modules():
        if hasattr(layer, "lora_A"):
            assert torch.allclose(layer.get_delta_weight("default") + layer.weight, merged[f"{name}.weight"], atol=1e-6)
    assert not trainer.run().finished
    second = second.rename(folder / "moved.safetensors")
    moved = make_config(folder, out=config.out, trains="lora", lora={"rank": 4, "start": str(second)})
    assert make_trainer(moved, data).run(resume=True).finished
    small = make_config(folder, out=str(folder / "small"), trains="lora", lora={"rank": 2, "start": str(second)})
    with pytest.raises(UniViGUError, match=r"has rank 3 at .*, but lora\.rank is 2; set it to 3"):
        make_trainer(small, data)
    tensors = load_file(second) | {"diffusion_model.blocks.0.norm3.diff": torch.zeros(32)}
    save_file(tensors, folder / "more.safetensors")
    more = make_config(
        folder, out=str(folder / "more"), trains="lora", lora={"start": str(folder / "more.safetensors")}
    )
    with pytest.raises(UniViGUError, match=r"contains more than low-rank pairs .*norm3"):
        make_trainer(more, data)


def test_changed_data_are_answered_with_what_is_not_set_yet(folder: Path) -> None:
    for data, has_hint in (("clips", True), ([{"path": "clips", "windows": "first"}], False)):
        config = make_config(folder, data=data)
        facts = {"config": config.to_dict(), "data": "old", "global_batch": 4}
        (line,) = checkpoints._differences(facts, config, 4, ["new"])
        assert line.startswith("data: the clips, their texts or the encoders have changed")
        assert ("set windows: first" in line) == has_hint


class Mixed(Clips):
    """Clips of two lengths and, of the longer ones, two prompts each."""

    def key(self, index: int) -> str:
        return f"mixed {index}"

    def group(self, index: int) -> int:
        return int(index >= 8)

    def item(self, index: int) -> TrainingClip:
        clip = super().item(index)
        return replace(clip, pixels=clip.pixels[:1]) if index < 8 else replace(clip, others=("w9 w9 w9",))


def mixed_latents(pixels: torch.Tensor) -> torch.Tensor:
    return ENCODERS.latent(pixels)[:, :, : 1 + pixels.shape[1] // 4]


def test_clips_of_several_lengths_train_together(folder: Path) -> None:
    """Each step is of one length, both halves of the clips are learnt from, and a stopped run goes on as it was."""
    encoders = replace(ENCODERS, latent=mixed_latents)
    data = build_shards(Mixed(12), encoders, folder / "cache", per_shard=5, in_memory=True, say=lambda _: None)
    assert {size: sum(len(clips) for _, clips in some) for size, some in data.buckets().items()} == {
        (1, 4, 4): 8,
        (2, 4, 4): 4,
    }
    assert {len(data.sample(9, u).prompt_ids) for u in (0.0, 0.49, 0.5, 0.99)} == {3, 4}
    assert {len(data.sample(0, u).prompt_ids) for u in (0.0, 0.99)} == {3}
    whole = make_config(folder, steps=6, batch=2, data=[{"path": "made", "repeats": 2}])
    trainer = make_trainer(whole, data)
    assert trainer.order.epoch == 24
    prepared = [trainer._prepared(step) for step in range(6)]
    lengths = [{batch.latents.shape[2] for batch in batches} for _, batches in prepared]
    assert sorted(map(tuple, lengths)) == [(1,)] * 4 + [(2,)] * 2
    assert trainer.run().finished
    parts = replace(whole, out=str(folder / "parts"))
    assert not make_trainer(parts, data, watch=Stop(3)).run().finished
    with pytest.raises(UniViGUError, match="repeats or weights of its sources have changed"):
        make_trainer(replace(parts, data=whole.sources[0].path), data).run(resume=True)
    assert make_trainer(parts, data).run(resume=True).finished
    assert same(curve(folder / "run"), curve(folder / "parts"))


def test_a_weight_is_a_share_whatever_the_size_of_the_source(folder: Path) -> None:
    encoders, say = ENCODERS, lambda _: None
    both = Together([Clips(9), Clips(3, details=False)])
    data = build_shards(both, encoders, folder / "cache", per_shard=5, in_memory=True, say=say)
    config = make_config(folder, data=[{"path": "a", "weight": 1}, {"path": "b", "weight": 3}])
    ((first, second),) = repeated(config, data)
    assert (first[0], second[0]) == (range(9), range(9, 12))
    assert (9 * first[1], 3 * second[1]) == (pytest.approx(3), pytest.approx(9))


def test_the_file_holds_the_averaged_weights(folder: Path) -> None:
    trainer = make_trainer(make_config(folder), make_shards(folder / "cache"))
    file = open_weights(trainer.run().file)
    assert trainer.average is not None
    assert all(torch.equal(file.read(name), mean) for name, mean in trainer.average.means.items())
    now = dict(trainer.network.named_parameters())
    assert not all(torch.equal(file.read(name), now[name]) for name in now)


def test_only_the_newest_checkpoints_stay_and_none_is_half_written(folder: Path) -> None:
    config = make_config(folder, steps=9)
    make_trainer(config, make_shards(folder / "cache")).run()
    kept = sorted(path.name for path in (folder / "run" / checkpoints.FOLDER).iterdir())
    assert kept == ["step_00000008", "step_00000009"]


def test_a_full_disk_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder)
    trainer = make_trainer(config, data)
    save = RunState.write

    def full(state: RunState, path: Path) -> None:
        save(state, path)
        if "00000004" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunState, "write", full)
    with pytest.raises(UniViGUError, match=r"No space left on device.*step_00000002"):
        trainer.run()
    assert [path.name for path in (folder / "run" / checkpoints.FOLDER).iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    assert make_trainer(config, data).run(resume=True).finished


def test_what_is_logged_as_rate_is_the_rate(folder: Path) -> None:
    make_trainer(make_config(folder), make_shards(folder / "cache")).run()
    rates = [entry["rate"] for entry in curve(folder / "run")]
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert rates[0] == pytest.approx(1e-3 / 3, rel=0.01)


def test_a_run_killed_before_its_first_checkpoint_leaves_no_entries_twice(folder: Path) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder)

    def killed(step: Any, trainer: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(config, data, watch=killed).run()
    assert [entry["step"] for entry in curve(folder / "run")] == [1]
    make_trainer(config, data).run()
    assert [entry["step"] for entry in curve(folder / "run")] == list(range(1, 7))


@pytest.mark.parametrize("split", [{}, {"batch": 1, "accumulate": 4}], ids=["one batch", "accumulated"])
def test_a_loss_that_is_no_number_names_the_clips_and_keeps_the_checkpoint(folder: Path, split: dict[str, int]) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder, **split)
    read = type(data).sample

    class Poisoned(type(data)):  # type: ignore[misc]
        def sample(self, index: int, wording: float = 0.0) -> Any:
            sample = read(self, index, wording)
            return replace(sample, latent=sample.latent * float("nan")) if index == 7 else sample

    data.__class__ = Poisoned
    with pytest.raises(UniViGUError, match=r"step \d: the loss is not a number, for these clips: clip 7\."):
        make_trainer(config, data).run()
    last = checkpoints.newest(folder / "run")
    if last is not None:
        weights = open_weights(last / "model.safetensors")
        assert all(weights.read(name).isfinite().all() for name in weights.tensors)


def test_after_a_broken_step_the_run_goes_on_as_its_message_says(folder: Path) -> None:
    """With another rate, and with the clip put right."""
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder), data, watch=Stop(3)).run()
    calmer = make_config(folder, optimizer={"rate": 1e-5, "warmup": 2, "ema": 0.9}, precision="bf16")
    repaired = make_shards(folder / "other", count=11)
    told: list[str] = []
    assert make_trainer(calmer, repaired, say=told.append).run(resume=True, accept_changes=True).finished
    assert "optimizer.rate: 0.001 -> 1e-05" in "".join(told)
    assert "precision: fp32 -> bf16" in "".join(told)
    assert "clips, their texts" in "".join(told)
    assert max(entry["rate"] for entry in curve(folder / "run")[3:]) <= 1e-5


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(folder: Path, file: str) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder)
    make_trainer(config, data, watch=Stop(4)).run()
    last = checkpoints.newest(folder / "run")
    assert last is not None
    (last / file).write_bytes((last / file).read_bytes()[:40])
    with pytest.raises(UniViGUError, match=r"step_00000004: cannot be read .* continues from the one before"):
        make_trainer(config, data).run(resume=True)
    shutil.rmtree(last)
    assert make_trainer(config, data).run(resume=True).finished


def test_texts_that_do_not_fit_the_text_stream_are_refused_before_the_first_step(folder: Path) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder)
    model = starting_network(config, vocab_size=WORDS, dtype=torch.float32)
    facts = CheckpointConfig(model.config, replace(RUN, text_length=2))
    with pytest.raises(UniViGUError, match="longest prompt has 3 tokens, but the model's text stream has 2"):
        Trainer(config, model, data, facts, make_accelerator(config))


def test_another_configuration_at_resume_is_refused_by_name(folder: Path) -> None:
    data = make_shards(folder / "cache")
    make_trainer(make_config(folder), data, watch=Stop(2)).run()
    other = make_config(folder, optimizer={"rate": 2e-3, "warmup": 2, "ema": 0.9}, seed=1)
    with pytest.raises(UniViGUError, match=r"(?s)optimizer.rate: 0.001 -> 0.002.*seed: 0 -> 1"):
        make_trainer(other, data).run(resume=True)
    with pytest.raises(UniViGUError, match="the clips, their texts"):
        make_trainer(make_config(folder), make_shards(folder / "other", count=11)).run(resume=True)
    free = make_config(folder, keep={"checkpoint_every": 1, "log_every": 1, "checkpoints": 1})
    assert make_trainer(free, data).run(resume=True).finished


def test_a_folder_that_holds_a_run_is_not_overwritten(folder: Path) -> None:
    data, config = make_shards(folder / "cache"), make_config(folder)
    make_trainer(config, data, watch=Stop(1)).run()
    with pytest.raises(UniViGUError, match="--resume"):
        make_trainer(config, data).run()


def test_refine_needs_detailed_captions(folder: Path) -> None:
    data = make_shards(folder / "cache", details=False)
    with pytest.raises(UniViGUError, match="12 of 12 clips have no detailed caption"):
        make_trainer(make_config(folder, stage="refine"), data)


def test_a_tokenizer_of_another_vocabulary_is_refused(folder: Path) -> None:
    config = make_config(folder)
    with pytest.raises(UniViGUError, match=f"knows {WORDS} tokens, the tokenizer has {WORDS + 1}"):
        starting_network(config, vocab_size=WORDS + 1)
    (folder / "large").mkdir()
    large = make_start(folder / "large", vocab_size=1000)
    with pytest.raises(UniViGUError, match=f"knows 1000 tokens, the tokenizer has {WORDS}"):
        starting_network(make_config(folder, model=str(large)), vocab_size=WORDS)
    fresh = starting_network(make_config(folder, text_half="fresh", source="mask"), vocab_size=WORDS + 1)
    assert fresh.token_embedding.weight.shape[0] == WORDS + 2


def test_a_fresh_text_half_starts_from_the_videos_weights(folder: Path) -> None:
    kept = starting_network(make_config(folder), vocab_size=WORDS)
    fresh = starting_network(make_config(folder, text_half="fresh"), vocab_size=WORDS)
    assert torch.equal(fresh.blocks[0].ffn_t[0].weight, kept.blocks[0].ffn[0].weight)
    assert torch.equal(fresh.time_embedding_t[0].weight, kept.time_embedding[0].weight)
    assert not fresh.text_head.head.weight.any()
    assert torch.equal(fresh.head.head.weight, kept.head.head.weight)


def test_samples_of_all_three_jobs_are_kept(folder: Path) -> None:
    pytest.importorskip("PIL")
    config = make_config(folder, keep={"sample_every": 3, "log_every": 2})

    def decode(latent: torch.Tensor) -> torch.Tensor:
        return torch.zeros(5, 32, 32, 3, dtype=torch.uint8)

    trainer = make_trainer(
        config, make_shards(folder / "cache"), decode=decode, tokens_to_text=lambda ids: f"{len(ids)} words"
    )
    trainer.run()
    told = (folder / "run" / "samples" / "step_00000006.txt").read_text("utf-8")
    assert f"video_to_text: {RUN.text_length} words" in told
    assert f"joint: {RUN.text_length} words" in told
    assert (folder / "run" / "samples" / "step_00000006.png").stat().st_size > 0


def test_tensorboard_shows_losses_by_stream_and_noise_and_the_samples(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(folder, batch=16, keep={"sample_every": 3, "log_every": 2})
    make_trainer(config, make_shards(folder / "cache"), tokens_to_text=lambda ids: f"{len(ids)} words").run()
    board = EventAccumulator(str(folder / "run" / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    quarters = ("0.00", "0.25", "0.50", "0.75")
    assert {"all/loss", "all/video", "all/text", *(f"video/sigma_{q}" for q in quarters)} <= set(tags["scalars"])
    assert {f"text/sigma_{q}" for q in quarters} <= set(tags["scalars"]), tags["scalars"]
    assert tags["tensors"], tags
