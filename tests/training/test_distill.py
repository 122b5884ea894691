"""The stage ``distill``: what its teacher shows, and that its student learns it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import RUN, Stop, curve, make_config, make_shards, make_start, make_trainer
from torch import Tensor

from uvg_core.checkpoint import LoraChoice, convert, read_config
from uvg_core.checkpoint.lora import Lora, Student
from uvg_core.errors import UniViGUError
from uvg_core.flow.schedule import shift_sigmas, unshift_sigmas, video_sigmas
from uvg_core.pipeline.component_files import find_fast_lora
from uvg_core.pipeline.pipeline import Pipeline
from uvg_core.sampling import GuidedDenoiser, Sampling, text_to_video
from uvg_core.training.distill import Distillation
from uvg_core.training.plan import Batch, plan_sample
from uvg_core.training.trainer import Trainer

ALONE = {"text_to_video": 1, "video_to_text": 0, "joint": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    make_start(folder)
    return folder


def trainer_of(folder: Path, tmp_path: Path, *, watch: Any = None, **changes: Any) -> Trainer:
    usual = {"stage": "distill", "trains": "lora", "out": str(tmp_path / "run"), "lora": {"rank": 8, "alpha": 8}}
    config = make_config(folder, **{**usual, **changes})
    return make_trainer(config, make_shards(tmp_path / "cache"), **({"watch": watch} if watch else {}))


def batch_of(trainer: Trainer, step: int = 0) -> Batch:
    return trainer._prepared(step)[1][0]


def teachers_way(trainer: Trainer, batch: Batch, scale: float, substeps: int, first: Tensor) -> Tensor:
    """Where the guided network leads each clip that starts from noise, by the sampler that users run."""
    objective = trainer.objective
    assert isinstance(objective, Distillation)
    assert batch.sigma_next is not None
    ends = []
    with objective._as_teacher() as model:
        for i in range(len(first)):
            here, there = (unshift_sigmas(x, RUN.shift) for x in (torch.tensor(1.0), batch.sigma_next[i]))
            u = torch.linspace(float(here), float(there), substeps + 1)
            denoise = GuidedDenoiser(model, batch.context[[i]], objective.null, scale)
            text: dict[str, Any] = {"text": batch.text[[i]], "text_mask": batch.mask[[i]]}
            settings = Sampling(steps=substeps).resolved(RUN)
            ends.append(
                text_to_video(denoise, first[[i]], settings, sigmas=shift_sigmas(u, RUN.shift).tolist(), **text)
            )
    return torch.cat(ends)


def test_the_first_pass_learns_the_guided_samplers_mean_velocity(folder: Path, tmp_path: Path) -> None:
    distill = {"passes": 1, "substeps": 3, "guidance": 4.0}
    trainer = trainer_of(folder, tmp_path, jobs=ALONE, empty_text=0.0, distill=distill)
    batch = batch_of(trainer)
    assert batch.sigma_next is not None
    assert batch.sigma_next.tolist() == [0] * 4
    losses = trainer.objective(batch)
    velocity, _ = trainer.objective._predict(batch, batch.noise, batch.text)
    wanted = batch.noise - teachers_way(trainer, batch, 4.0, 3, batch.noise)
    assert torch.allclose(losses.video, (velocity - wanted).square().flatten(1).mean(1), rtol=1e-3)


def test_a_student_that_has_learnt_nothing_equals_an_unguided_teacher_of_one_step(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, distill={"substeps": 1, "guidance": 1.0})
    for step in range(3):
        losses = trainer.objective(batch_of(trainer, step))
        assert losses.video.abs().max() < 1e-8
        assert losses.text.abs().max() < 1e-5


def test_guidance_and_longer_ways_are_something_to_learn(folder: Path, tmp_path: Path) -> None:
    for distill in ({"substeps": 1, "guidance": 5.0}, {"passes": 1, "substeps": 4, "guidance": 1.0}):
        trainer = trainer_of(folder, tmp_path, jobs=ALONE, distill=distill)
        assert trainer.objective(batch_of(trainer)).video.mean() > 1e-4


def test_own_states_are_where_the_students_passes_lead(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, jobs=ALONE, empty_text=0.0, distill={"passes": 3, "own_states": 1.0})
    objective, sigmas = trainer.objective, video_sigmas(3, RUN.shift).tolist()
    batch = batch_of(trainer)
    batch = replace(batch, sigma_video=torch.full((4,), sigmas[2]))
    found = objective._own(batch, batch.latents, batch.text)
    denoise = GuidedDenoiser(trainer.network, batch.context, None, 1.0)
    settings = Sampling(steps=2).resolved(RUN)
    wanted = text_to_video(denoise, batch.noise, settings, text=batch.text, text_mask=batch.mask, sigmas=sigmas[:3])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_plans_are_passes_of_the_student_and_keep_the_prompt(folder: Path) -> None:
    config = make_config(folder, stage="distill", distill={"passes": 4, "joint_passes": 8}, batch=1)
    grids = {
        "text_to_video": video_sigmas(4, RUN.shift).tolist(),
        "joint": video_sigmas(8, RUN.shift).tolist(),
    }
    seen: dict[str, set[float]] = {"text_to_video": set(), "joint": set(), "video_to_text": set()}
    for position in range(300):
        plan = plan_sample(config, position, RUN.shift)
        seen[plan.job].add(plan.sigma_video)
        if plan.job == "video_to_text":
            assert plan.sigma_next is None
            assert plan.sigma_video == 0
            continue
        at = grids[plan.job].index(plan.sigma_video)
        assert plan.sigma_next == grids[plan.job][at + 1]
        assert not plan.dropped
        assert plan.sigma_text == (plan.sigma_video if plan.job == "joint" else 0)
    assert {job: len(values) for job, values in seen.items()} == {"text_to_video": 4, "joint": 8, "video_to_text": 1}


@pytest.mark.parametrize("trains", ["lora", "all"])
def test_a_student_comes_closer_and_its_teacher_stays(folder: Path, tmp_path: Path, trains: str) -> None:
    trainer = trainer_of(
        folder,
        tmp_path,
        trains=trains,
        steps=120,
        batch=8,
        jobs=ALONE,
        empty_text=0.0,
        distill={"passes": 1, "substeps": 3},
        optimizer={"rate": 5e-3, "warmup": 5, "ema": 0},
        keep={"checkpoint_every": 0, "log_every": 1},
    )
    batch = batch_of(trainer)
    before, way = trainer.objective(batch).video, teachers_way(trainer, batch, RUN.guidance_scale, 3, batch.noise)
    trainer.run()
    assert trainer.objective(batch).video.mean() < 0.5 * before.mean()
    assert torch.equal(way, teachers_way(trainer, batch, RUN.guidance_scale, 3, batch.noise))


def test_a_stopped_run_goes_on_as_if_it_had_not(folder: Path, tmp_path: Path) -> None:
    whole = trainer_of(folder, tmp_path / "whole", steps=4)
    whole.run()
    for resume, watch in ((False, Stop(2)), (True, None)):
        trainer = trainer_of(folder, tmp_path / "parts", steps=4, watch=watch)
        trainer.run(resume=resume)
    assert curve(tmp_path / "parts" / "run") == curve(tmp_path / "whole" / "run")


def test_training_the_text_half_alone_is_refused(folder: Path) -> None:
    with pytest.raises(UniViGUError, match="distill with trains: text"):
        make_config(folder, stage="distill", trains="text")


def test_a_students_lora_says_how_it_is_run(folder: Path, tmp_path: Path) -> None:
    distill = {"passes": 3, "joint_passes": 5, "substeps": 1}
    trainer = trainer_of(folder, tmp_path, steps=1, distill=distill)
    file = trainer.run().file
    assert file is not None
    assert Lora(LoraChoice(file), trainer.network.config).student == Student(3, 5)
    usual = trainer_of(folder, tmp_path / "usual", steps=1, stage="recall").run().file
    assert usual is not None
    assert Lora(LoraChoice(usual), trainer.network.config).student is None
    convert(folder / "start.safetensors", tmp_path / "merged.safetensors", loras=[file])
    assert read_config(tmp_path / "merged.safetensors").run == trainer.facts.run.distilled(3, 5)


def test_a_whole_student_says_how_it_is_run(folder: Path, tmp_path: Path) -> None:
    distill = {"passes": 3, "joint_passes": 5, "substeps": 1}
    trainer = trainer_of(folder, tmp_path, steps=1, trains="all", distill=distill)
    file = trainer.run().file
    assert file is not None
    run = read_config(file).run
    assert run == trainer.facts.run.distilled(3, 5)
    assert [Sampling().resolved(run, joint=both).steps for both in (False, True)] == [3, 5]
    assert Sampling().resolved(run, captions=True).steps == run.text_steps


def test_fast_takes_the_lora_beside_the_checkpoint(tmp_path: Path) -> None:
    model = tmp_path / "diffusion_models" / "mine.safetensors"
    with pytest.raises(UniViGUError, match=r"found no mine_fast\.safetensors beside it or in .*loras"):
        find_fast_lora(model)
    for place in (tmp_path / "loras", model.parent):  # the nearer one counts
        place.mkdir()
        file = place / "mine_fast.safetensors"
        file.touch()
        assert find_fast_lora(model) == file


def test_jobs_draw_as_the_students_lora_says(tmp_path: Path) -> None:
    layer, path = "diffusion_model.blocks.0.self_attn.q", tmp_path / "student.safetensors"
    stated = {"uvg_training": json.dumps({"distill": {"passes": 2, "joint_passes": 3}})}
    halves = {f"{layer}.lora_A.weight": torch.zeros(2, 192), f"{layer}.lora_B.weight": torch.zeros(192, 2)}
    save_file(halves, path, stated)
    pipe, seen = Pipeline(loras=[path], device="cpu"), list[int]()
    again = Pipeline(device="cpu").generate("a red circle", sampling=Sampling(steps=2, guidance_scale=1.0))
    clip = pipe.generate("a red circle", callback=lambda step, state: seen.append(step))
    assert seen == [1, 2]
    assert torch.equal(clip, again)  # without guidance
    pipe.joint("a red circle", callback=lambda step, state: seen.append(step))
    assert seen == [1, 2, 1, 2, 3]
    pipe.generate("a red circle", sampling=Sampling(steps=1), callback=lambda step, state: seen.append(step))
    assert seen[5:] == [1]
    with pytest.raises(UniViGUError, match="negative prompt has no effect"):
        pipe.generate("a red circle", negative="blue")
    off = Pipeline(loras=[LoraChoice(path, video=0.0)], device="cpu")
    assert off.config.run == Pipeline(device="cpu").config.run


# --- matching distributions -------------------------------------------------------------------------------------------

MATCHES = {"matching": "distribution", "own_states": 1.0}


def gradients(trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
    """Of the LoRAs, after one batch."""
    trainer.network.zero_grad()
    trainer.objective(batch).video.mean().backward()
    return {n: w.grad.clone() for n, w in trainer.network.named_parameters() if w.grad is not None}


def stirred(trainer: Trainer, *names: str) -> Trainer:
    """With other LoRAs of these names than those that change nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in trainer.network.named_parameters():
            if any(f"lora_B.{one}." in name for one in names):
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return trainer


def test_a_student_that_draws_as_likely_clips_as_its_teacher_does_not_move(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, jobs=ALONE, distill={**MATCHES, "guidance": 1.0})
    batch = batch_of(trainer)
    of_student = [grad for name, grad in gradients(trainer, batch).items() if ".default." in name]
    assert of_student
    assert all(not grad.any() for grad in of_student)
    stirred(trainer, "critic")  # which now says that the student's clips are other ones
    assert any(grad.any() for name, grad in gradients(trainer, batch).items() if ".default." in name)


def test_the_student_moves_towards_the_teacher_and_away_from_its_critic(folder: Path, tmp_path: Path) -> None:
    trainer = stirred(trainer_of(folder, tmp_path, jobs=ALONE, distill={**MATCHES, "passes": 1}), "critic")
    objective, batch = trainer.objective, batch_of(trainer)
    assert batch.again is not None
    assert batch.sigma_again is not None
    with torch.no_grad():
        made = batch.noise - objective._predict(batch, batch.noise, batch.text)[0]
        sigma = batch.sigma_again[:, 0].clamp(0.02, 0.98)
        x = made + sigma.view(-1, 1, 1, 1, 1) * (batch.again[:, 0] - made)
        at = replace(batch, sigma_video=sigma)
        with objective._as_teacher() as model:
            real = objective._guided(model, at, x, batch.text, logits=False).velocity
        critic = objective._criticised(at, x, batch.text)
        towards = sigma.view(-1, 1, 1, 1, 1) * (critic - real)  # from the critic's clean clip to the teacher's

    def moved() -> Tensor:
        return batch.noise - objective._predict(batch, batch.noise, batch.text)[0] - made

    trainer.network.zero_grad()
    objective(batch).video.mean().backward()
    with torch.no_grad():
        for name, weight in trainer.network.named_parameters():
            if ".default." in name and weight.grad is not None:
                weight -= 0.1 * weight.grad
        assert float((moved() * towards).sum()) > 0


def test_student_and_critic_learn_apart(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, jobs=ALONE, distill={**MATCHES, "critic_rate": 3.0})
    rates = [group["peak_lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    assert sorted(rates)[-1] == pytest.approx(3 * min(rates))
    found = gradients(stirred(trainer, "default", "critic"), batch_of(trainer))
    assert {name.split(".")[-2] for name in found} == {"default", "critic"}
    thrifty = trainer_of(folder, tmp_path, jobs=ALONE, distill=MATCHES, checkpointing=True)
    again = gradients(stirred(thrifty, "default", "critic"), batch_of(trainer))
    assert all(torch.allclose(again[name], grad, atol=1e-6) for name, grad in found.items())


def test_rows_at_noisy_clips_learn_the_trajectory_all_the_same(folder: Path, tmp_path: Path) -> None:
    both, along = (
        trainer_of(folder, tmp_path / name, distill={"matching": name, "own_states": 0.0}, jobs={"joint": 1})
        for name in ("distribution", "trajectory")
    )
    for mine, usual in zip(both.objective(batch_of(both)), along.objective(batch_of(along)), strict=True):
        assert torch.allclose(mine, usual, atol=1e-6)


def test_the_critic_has_no_part_in_what_is_saved_but_in_what_goes_on(folder: Path, tmp_path: Path) -> None:
    whole = trainer_of(folder, tmp_path / "whole", steps=4, distill=MATCHES)
    file = whole.run().file
    assert file is not None
    assert not any("critic" in name for name in load_file(file))
    for resume, watch in ((False, Stop(2)), (True, None)):
        trainer = trainer_of(folder, tmp_path / "parts", steps=4, distill=MATCHES, watch=watch)
        trainer.run(resume=resume)
    assert curve(tmp_path / "parts" / "run") == curve(tmp_path / "whole" / "run")


def test_matching_distributions_needs_two_loras(folder: Path) -> None:
    with pytest.raises(UniViGUError, match=r"distill\.matching is distribution, but trains is all"):
        make_config(folder, stage="distill", trains="all", distill=MATCHES)
