"""The state of a run in safetensors and JSON, and what earlier versions of the pack left in pickles.

    model.safetensors       the weights that learn
    optimizer.safetensors   what the optimizers remember, by ``<weight>/<entry>``
    average.safetensors     the moving average, where there is one
    random_<process>.safetensors   the states of torch's random number generators
    state.json              every number that is no tensor

Nothing in these files can run code. Learning rates follow from the step alone, so there is no scheduler to keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint.read import open_weights
from ..checkpoint.torch_file import read_saved
from ..errors import UniViGUError
from ..io import read_text, write_text
from .optimizers import Average

_EVERYWHERE = {"full_state_dict": True, "ignore_frozen_params": True, "strict": False}
_IN_MEMORY = _EVERYWHERE | {"cpu_offload": True}  # of several processes, only the main one gets it
# An optimizer's state by weight and entry: tensors and plain numbers.
States = dict[str, dict[str, Any]]


def _state_dicts() -> ModuleType:
    """Imported where a state is read or written: it takes more than a second, which no other command is to wait for."""
    from torch.distributed.checkpoint import state_dict

    return state_dict


@dataclass(frozen=True)
class RunState:
    """Everything of a run that changes while it learns. ``write`` and ``read`` are called on every process."""

    accelerator: Any
    objective: nn.Module
    optimizers: tuple[Any, ...]
    average: Average | None

    @property
    def _plain_optimizers(self) -> list[torch.optim.Optimizer]:
        return [getattr(one, "optimizer", one) for one in self.optimizers]

    def _weights(self, options: Mapping[str, bool]) -> dict[str, Any]:
        of = _state_dicts()
        return dict(of.get_model_state_dict(self.objective, options=of.StateDictOptions(**options)))

    def _optimizer_states(self, options: Mapping[str, bool]) -> dict[str, Any]:
        of = _state_dicts()
        given = self.objective, self._plain_optimizers
        return dict(of.get_optimizer_state_dict(*given, options=of.StateDictOptions(**options)))

    def _restore(self, weights: dict[str, Any], states: Any) -> None:
        of = _state_dicts()
        options = of.StateDictOptions(**_EVERYWHERE)
        of.set_model_state_dict(self.objective, weights, options=options)
        of.set_optimizer_state_dict(self.objective, self._plain_optimizers, states, options=options)

    def write(self, folder: Path) -> None:
        """Write the state into a folder that is there."""
        weights, found = self._weights(_IN_MEMORY), self._optimizer_states(_IN_MEMORY)
        random = f"random_{self.accelerator.process_index}.safetensors"
        save_file(_random_states(self.accelerator.device), folder / random)
        if not self.accelerator.is_main_process:
            return
        states: States = found["state"]
        save_file(_apart(weights), folder / "model.safetensors")
        tensors = {f"{name}/{key}": value for name, key, value in _entries(states) if isinstance(value, Tensor)}
        save_file(_apart(tensors), folder / "optimizer.safetensors")
        numbers: dict[str, Any] = {"optimizer": {name: {} for name in states}}
        for name, key, value in _entries(states):
            if not isinstance(value, Tensor):
                numbers["optimizer"][name][key] = value
        if self.average is not None:
            save_file(_apart(self.average.means), folder / "average.safetensors")
            numbers["average"] = self.average.count
        if self.accelerator.scaler is not None:
            numbers["scaler"] = self.accelerator.scaler.state_dict()
        write_text(folder / "state.json", json.dumps(numbers))

    def read(self, folder: Path) -> None:
        """Put the state back. Raises UniViGUError for files that are damaged, or of another network or optimizer."""
        weights = _tensors(folder / "model.safetensors")
        wanted = self._weights(_EVERYWHERE)
        # Earlier versions stored what does not learn, too.
        _require_alike(folder / "model.safetensors", {name: weights.get(name) for name in wanted}, wanted)
        fresh = self._optimizer_states(_EVERYWHERE)
        is_old = not (folder / "state.json").exists()
        states, average, scaler = self._old(folder) if is_old else _current(folder)
        _require_alike(folder / "the optimizer's state", _flat(states), _flat(fresh["state"]))
        if (average is None) != (self.average is None):
            have, want = ("a", "none") if average else ("no", "one")
            raise UniViGUError(f"{folder}: the checkpoint has {have} moving average, this run {want} (optimizer.ema)")
        self._restore({name: weights[name] for name in wanted}, {**fresh, "state": states})
        if self.average is not None and average is not None:
            count, means = average
            _require_alike(folder / "the moving average", means, self.average.means)
            self.average.load_state_dict({"count": count, "means": means})
        if scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        random = folder / f"random_{self.accelerator.process_index}.safetensors"
        if random.exists():  # not with more processes than before; every draw follows from its position all the same
            _set_random_states(_tensors(random))

    def _old(self, folder: Path) -> tuple[States, tuple[int, Mapping[str, Tensor]] | None, dict[str, Any]]:
        """What accelerate wrote for earlier versions: pickles, read without running anything in them."""
        names = {id(weight): name for name, weight in self.objective.named_parameters()}
        states: States = {}
        for number, optimizer in enumerate(self._plain_optimizers):
            file = folder / ("optimizer.bin" if number == 0 else f"optimizer_{number}.bin")
            saved = read_saved(file)
            order = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
            for index, entries in _mapping(file, saved, "state").items():
                if not isinstance(index, int) or not 0 <= index < len(order) or not isinstance(entries, dict):
                    raise UniViGUError(f"{file}: not the state of this run's optimizer")
                states[order[index]] = entries
        average, file = None, folder / "custom_checkpoint_0.pkl"
        if file.exists():
            saved = read_saved(file)
            count = saved.get("count") if isinstance(saved, dict) else None
            average = (count if isinstance(count, int) else 0), _mapping(file, saved, "means")
        scaler = read_saved(folder / "scaler.pt") if (folder / "scaler.pt").exists() else {}
        return states, average, scaler if isinstance(scaler, dict) else {}


def _current(folder: Path) -> tuple[States, tuple[int, Mapping[str, Tensor]] | None, dict[str, Any]]:
    file = folder / "state.json"
    try:
        numbers: dict[str, Any] = json.loads(read_text(file, exact=True, most=2**26))
        states: States = {name: dict(entries) for name, entries in numbers["optimizer"].items()}
        for place, value in _tensors(folder / "optimizer.safetensors").items():
            name, _, key = place.rpartition("/")
            states[name][key] = value
        average = None
        if "average" in numbers:
            average = int(numbers["average"]), _tensors(folder / "average.safetensors")
        return states, average, dict(numbers.get("scaler") or {})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, FileNotFoundError) as error:
        raise UniViGUError(f"{file}: cannot be read ({error})") from None


def _entries(states: States) -> Iterable[tuple[str, str, Any]]:
    return ((name, key, value) for name, entries in states.items() for key, value in entries.items())


def _flat(states: States) -> dict[str, Any]:
    return {f"{name}/{key}": value for name, key, value in _entries(states)}


def _mapping(file: Path, saved: Any, key: str) -> dict[Any, Any]:
    found = saved.get(key) if isinstance(saved, dict) else None
    if not isinstance(found, dict):
        raise UniViGUError(f"{file}: has no entry {key!r}; expected a file written by training")
    return found


def _tensors(file: Path) -> dict[str, Tensor]:
    weights = open_weights(file)
    return {name: weights.read(name) for name in weights.tensors}


def _require_alike(what: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UniViGUError unless both have the same names, and tensors of the same shapes and kinds of numbers."""
    for name in wanted.keys() | found.keys():
        one, other = found.get(name), wanted.get(name)
        kinds = [
            (tuple(x.shape), x.is_floating_point()) if isinstance(x, Tensor) else isinstance(x, (int, float))
            for x in (one, other)
        ]
        if kinds[0] != kinds[1]:
            raise UniViGUError(f"{what}: does not fit this network or optimizer at {name}")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For safetensors, which takes no tensors that share memory or have gaps."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: Mapping[str, Tensor]) -> None:
    try:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UniViGUError(f"the states of the random number generators do not fit ({error})") from None
