"""Every reader of strangers' files takes mutated ones: it reads them or says in words why not, in bounded time and
memory, and runs nothing. The readers are listed in ``tests/mutants``."""

import sys
from pathlib import Path

import pytest
from mutants import parsers

if not sys.platform.startswith("linux"):
    pytest.skip("the limits and the measure of memory are Linux's", allow_module_level=True)

from mutants._child import FINE, outcomes

PARSERS = parsers()
FEW, BATCH, MANY = 24, 125, 500


def check(name: str, folder: Path, seeds: range) -> None:
    found = outcomes(name, PARSERS[name].make(folder), seeds)
    wrong = {seed: outcome for seed, outcome in found.items() if outcome not in FINE}
    assert not wrong, "\n".join(
        [f"{len(wrong)} of {len(found)} mutants; see one by: PYTHONPATH=tests:. python -m mutants {name!r} SEED"]
        + [f"{seed}: {outcome}" for seed, outcome in wrong.items()]
    )
    assert len(found) == len(seeds)
    print(f"{name}: {len(found)} mutants, {sum(outcome == 'read' for outcome in found.values())} read")


@pytest.mark.parametrize("name", PARSERS)
def test_a_few_mutants(name, tmp_path):
    check(name, tmp_path, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, MANY, BATCH))
@pytest.mark.parametrize("name", PARSERS)
def test_many_mutants(name, first, tmp_path):
    check(name, tmp_path, range(1000 + first, 1000 + first + BATCH))
