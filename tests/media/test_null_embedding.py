"""A prompt condition from a file, in every form that it may have, and what is told of others."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from uvg_core import UniViGUError
from uvg_core.media.null_embedding import read_null_embedding

STATES = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "saved",
    [
        STATES,
        STATES[None],
        STATES[None].bfloat16(),
        {"context": STATES, "length": torch.tensor(5), "prompt": ""},
        [STATES],
    ],
    ids=["rows", "a batch of one", "bfloat16", "a dict", "a list"],
)
def test_every_form(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "null.pt")
    found = read_null_embedding(tmp_path / "null.pt", 20)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, STATES[None], atol=0.02, rtol=0)


def test_safetensors(tmp_path: Path) -> None:
    save_file({"null": STATES}, tmp_path / "null.safetensors")
    assert torch.equal(read_null_embedding(tmp_path / "null.safetensors"), STATES[None])


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (torch.zeros(5, 7), r"found a tensor \[5, 7\]; expected one tensor \[rows, 20\]"),
        (torch.zeros(2, 5, 20), r"found a tensor \[2, 5, 20\]"),
        (torch.zeros(0, 20), r"found a tensor \[0, 20\]"),
        (torch.zeros(20), "found 0 tensors"),
        (torch.zeros(5, 20, dtype=torch.long), "found 0 tensors"),
        ({"a": STATES, "b": STATES}, "found 2 tensors"),
        ("words", "found 0 tensors"),
        (STATES * torch.nan, "not numbers"),
        ({"null": STATES, "trap": Trap()}, "Nothing in it was executed"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Any, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(saved, "null.pt")
    with pytest.raises(UniViGUError, match=says) as caught:
        read_null_embedding("null.pt", 20)
    assert "null.pt" in str(caught.value)
    assert not Path("sprung").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    (tmp_path / "words.txt").write_text("null")
    for name, says in (("bare.pt", "cannot be read"), ("words.txt", "ends in .pt"), ("gone.pt", "no such file")):
        with pytest.raises(UniViGUError, match=says):
            read_null_embedding(tmp_path / name)
