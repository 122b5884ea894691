"""Files of torch.save with whatever a trainer leaves in them: the weights come out exactly, the rest is counted."""

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import fractions
import functools
import io
import logging
import pathlib
import random
import re
import sys
import types
import uuid
import zipfile

import pytest
import torch

from uvg_core.checkpoint import convert, inspect_checkpoint, load_model
from uvg_core.checkpoint.read import open_weights
from uvg_core.errors import UniViGUError

np = pytest.importorskip("numpy")

THEIRS = "a_trainer_nobody_has"  # a module that is there while a file is written, and gone when it is read

_SOURCE = """
import collections, dataclasses, enum, functools, torch

class Plain:
    def __init__(self, *parts): self.parts = list(parts)
class Slots:
    __slots__ = ("a", "b")
    def __init__(self): self.a, self.b = 1, torch.ones(2)
class WithState(Plain):
    def __getstate__(self): return ("state", self.parts)
    def __setstate__(self, state): raise SystemExit("ran")
class Keywords(Plain):
    def __new__(cls, *args, **kwargs): return super().__new__(cls)
    def __getnewargs_ex__(self): return (1, 2), {"three": 3}
class Reduced(Plain):
    def __reduce__(self): return Reduced, (1,), {"x": 2}, iter([3, 4]), iter([("five", 6)])
class State(dict): pass
class OrderedState(collections.OrderedDict): pass
class Listing(list): pass
class Words(str): pass
class Number(float): pass
class Colour(enum.Enum): RED = 1
class Whole(torch.nn.Module):
    def __init__(self): super().__init__(); self.inner = torch.nn.Linear(2, 2)
class Sub(torch.Tensor): pass
Point = collections.namedtuple("Point", "x y")
@dataclasses.dataclass
class Config: path: str = "runs/1"; sizes: tuple = (1, 2); inner: object = None
def collate(batch): return batch
"""


@pytest.fixture
def theirs():
    """The module, to be removed before reading: ``del sys.modules[THEIRS]``."""
    module = types.ModuleType(THEIRS)
    exec(_SOURCE, vars(module))
    for value in list(vars(module).values()):
        if isinstance(value, type):
            value.__module__ = THEIRS
    sys.modules[THEIRS] = module
    yield module
    sys.modules.pop(THEIRS, None)


def cyclic(kind):
    if kind == "list":
        value = [1]
        value.append(value)
    elif kind == "dict":
        value = {}
        value["me"] = value
    else:
        value = argparse.Namespace()
        value.me = value
    return value


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def optimizer():
    layer = torch.nn.Linear(2, 3)
    made = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    made.step()
    return made


def leftovers(theirs):
    """What is found beside weights, by kind."""
    generator = np.random.default_rng(1)
    t = theirs
    return {
        "nothing": None,
        "namespace": argparse.Namespace(lr=1e-4, out=pathlib.Path("runs"), sizes=[1, 2]),
        "simple namespace": types.SimpleNamespace(a=1),
        "config": t.Config(inner=t.Config(sizes=(np.int64(3),))),
        "plain": t.Plain(t.Plain(1), t.Slots()),
        "slots": t.Slots(),
        "with state": t.WithState(1),
        "keywords": t.Keywords(1),
        "reduced": t.Reduced(),
        "enum": t.Colour.RED,
        "named tuple": t.Point(1, 2),
        "dict class": t.State(a=torch.ones(2)),
        "list class": t.Listing([1, 2]),
        "text class": t.Words("x"),
        "number class": t.Number(2.5),
        "class": t.Plain,
        "function": t.collate,
        "partial": functools.partial(t.collate, batch=3),
        "module": t.Whole(),
        "torch module": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU()),
        "torch class": torch.nn.Linear,
        "optimizer": optimizer(),
        "optimizer state": optimizer().state_dict(),
        "default dict": collections.defaultdict(list, {"a": [1]}),
        "ordered": collections.OrderedDict(a=collections.OrderedDict(b=1)),
        "counter": collections.Counter("abca"),
        "deque": collections.deque([1, 2], maxlen=5),
        "set": {1, 2, (3, 4)},
        "frozen set": frozenset({1, frozenset({2})}),
        "odd keys": {1: 2, (1, 2): 3, None: 4, 2.5: 5, b"x": 7, frozenset(): 8, t.Colour.RED: 9},
        "numpy scalar": np.float32(1.5),
        "numpy bool": np.bool_(True),
        "numpy text": np.str_("words"),
        "numpy array": np.arange(12.0).reshape(3, 4),
        "numpy objects": np.array([{"a": 1}, None], dtype=object),
        "numpy dtype": np.dtype([("a", "<f4"), ("b", "<i8")]),
        "numpy state": np.random.RandomState(1).get_state(),
        "numpy random": np.random.RandomState(1),
        "numpy generator": generator,
        "numpy generator state": generator.bit_generator.state,
        "python state": random.getstate(),
        "torch state": torch.get_rng_state(),
        "dtype": [torch.float16, torch.bfloat16, torch.float8_e4m3fn],
        "device": torch.device("cuda", 3),
        "size": torch.Size([1, 2]),
        "layout": torch.strided,
        "finfo": [1e308, float("nan"), float("-inf"), 1e-310],
        "storage": torch.ones(3).untyped_storage(),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "expanded": torch.ones(1).expand(100_000_000),
        "tensor class": torch.ones(2).as_subclass(t.Sub),
        "path": [pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:/y")],
        "time": [
            datetime.datetime(2026, 4, 1, tzinfo=datetime.timezone.utc),
            datetime.timedelta(1),
            datetime.date(1, 2, 3),
        ],
        "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1 + 2j, 10**4000, -(10**30), 2**63, -1, 70000],
        "uuid": uuid.UUID(int=5),
        "bytes": [b"", b"x" * 300, bytes(70_000), bytearray(b"abc"), bytearray(80_000)],
        "texts": ["", "ü" * 300, "x" * 70_000, "\ud800", "a\nb\0c", "\N{GRINNING FACE}" * 99],
        "range": [range(5), slice(1, 2), Ellipsis, NotImplemented],
        "pattern": re.compile("a+"),
        "error": ValueError("x"),
        "buffer": io.BytesIO(b"abc"),
        "array": array.array("f", [1.0, 2.0]),
        "logger": logging.getLogger("theirs"),
        "module function": dataclasses.field,
        "cyclic list": cyclic("list"),
        "cyclic dict": cyclic("dict"),
        "cyclic object": cyclic("object"),
        "nested": nested(150),
        "many": list(range(3000)),
    }


def weights():
    """Every way in which a plain weight is stored."""
    whole = torch.arange(24.0).reshape(4, 6)
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    noted = torch.nn.Parameter(torch.randn(2))
    noted.note = "attributes travel along"
    return {
        "float32": torch.randn(3, 2),
        "bfloat16": torch.randn(3, 2).bfloat16(),
        "float16": torch.randn(5).half(),
        "float64": torch.randn(5).double(),
        "float8": torch.randn(7).to(torch.float8_e4m3fn),
        "float8 e5": torch.randn(7).to(torch.float8_e5m2),
        "int64": torch.arange(3),
        "uint16": torch.arange(3).to(torch.uint16),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "parameter": parameter,
        "noted": noted,
        "buffer": torch.nn.Buffer(torch.ones(2)),
        "transposed": whole.T,
        "part": whole[1:3, ::2],
        "reversed": whole[:, 5:].T,
        "tied": whole,
        "again": whole,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "empty part": whole[:, 6:],
        "": torch.ones(1),
        "x" * 3000: torch.ones(1),
    }


def same(file, expected):
    assert set(file.tensors) == set(expected)
    for name, tensor in expected.items():
        read = file.read(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert read.is_contiguous()
        assert bytes(read.flatten().view(torch.uint8)) == bytes(
            tensor.detach().contiguous().flatten().view(torch.uint8)
        )


FORMS = {
    "zip": {},
    "zip, protocol 3": {"pickle_protocol": 3},
    "zip, protocol 5": {"pickle_protocol": 5},
    "stream": {"_use_new_zipfile_serialization": False},
    "stream, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


TENSORS = {"sparse", "meta", "conjugate", "expanded", "tensor class", "torch state"}  # no leftovers among weights


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("form", FORMS)
def test_whatever_lies_beside_the_weights_they_come_out_exactly(form, theirs, tmp_path):
    expected, kinds = weights(), leftovers(theirs)
    for kind, left in kinds.items():
        inside = {} if kind in TENSORS else {"extra": left}
        torch.save(
            {"args": left, "model": {**expected, **inside}, "step": 7, "more": [left]},
            tmp_path / f"{kind}.pth",
            **FORMS[form],
        )
    del sys.modules[THEIRS]
    assert len(kinds) >= 65
    for kind in kinds:
        file = open_weights(tmp_path / f"{kind}.pth")
        same(file, expected)
        assert file.step == 7
        assert re.match(r"[23] things beside the weights: args \(.*, more \(list\)", file.ignored), kind
        assert len(file.ignored) < 500
    assert THEIRS not in sys.modules


def test_the_dict_of_weights_may_be_of_any_class(theirs, tmp_path):
    expected = weights()
    ordered = collections.OrderedDict(expected)
    ordered._metadata = {"": {"version": 1}}
    states = {
        "dict": dict(expected),
        "ordered": ordered,
        "class": theirs.State(expected),
        "ordered class": theirs.OrderedState(expected),
        "default dict": collections.defaultdict(theirs.Plain, expected),
    }
    layouts = {
        "bare": lambda state: state,
        "model": lambda state: {"model": state},
        "state_dict": lambda state: {"state_dict": state, "model": theirs.Config()},
        "class of dicts": lambda state: theirs.State(model=state),
        "odd keys": lambda state: {1: 2, (1, 2): torch.ones(2), "model": state},
    }
    for (kind, state), (layout, place) in [(s, lay) for s in states.items() for lay in layouts.items()]:
        torch.save(place(state), tmp_path / f"{kind} {layout}.pth")
    del sys.modules[THEIRS]
    for kind, layout in [(s, lay) for s in states for lay in layouts]:
        file = open_weights(tmp_path / f"{kind} {layout}.pth")
        same(file, expected)
        assert bool(file.ignored) == (layout in ("state_dict", "odd keys"))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda t: t.Whole(), "found a a_trainer_nobody_has.Whole, expected a dict"),
        (lambda t: {"model": t.Whole()}, r"no tensors in it \(entries: model \(a_trainer_nobody_has.Whole\)"),
        (lambda t: {"model": {"a": t.Plain(torch.ones(2))}}, r"entries: model \(dict\)"),
        (lambda t: {"a": torch.ones(2), "b": torch.eye(2).to_sparse()}, "b is not stored in full"),
        (lambda t: {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.complex64).conj()}, "b is not stored in full"),
        (lambda t: {"a": torch.ones(2, dtype=torch.complex128)}, "complex128, which is not a dtype of weights"),
        (lambda t: [torch.ones(2)], "found a list"),
        (lambda t: dict.fromkeys(map(str, range(40)), torch.ones(9000)), "again and again"),
    ],
)
def test_what_is_no_dict_of_plain_weights_is_refused_in_words(make, found, theirs, tmp_path):
    torch.save(make(theirs), tmp_path / "x.pth")
    del sys.modules[THEIRS]
    with pytest.raises(UniViGUError, match=rf"x\.pth: .*{found}"):
        open_weights(tmp_path / "x.pth")


def test_what_is_ignored_is_said_once_when_loading_and_shown_by_inspect(model, tools, tmp_path, caplog):
    path = tools.write_uni_vigu(model, "release", tmp_path)
    stored = torch.load(path)
    torch.save({**stored, "args": argparse.Namespace(a=1)}, path)
    says = "2 things beside the weights: optimizer (dict), args (argparse.Namespace)"
    assert f"ignored           {says}\n" in str(inspect_checkpoint(path))
    with caplog.at_level(logging.INFO):
        load_model(path)
        assert [record.getMessage() for record in caplog.records] == [f"{path}: ignored {says}"]
        convert(path, tmp_path / "out.safetensors")
    assert len(caplog.records) == 2
    assert "\nignored" not in str(inspect_checkpoint(tmp_path / "out.safetensors"))


def test_big_endian_files_are_turned_around(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(6).reshape(2, 3).T, "c": torch.randn(4).bfloat16()}
    swapped = {name: tensor.clone() for name, tensor in tensors.items()}
    swapped["b"] = torch.arange(6).reshape(2, 3)
    for tensor in swapped.values():
        tensor.untyped_storage().byteswap(tensor.dtype)
    torch.save({**swapped, "b": swapped["b"].T}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for member in old.namelist():
            new.writestr(member, b"big" if member.endswith("/byteorder") else old.read(member))
    same(open_weights(tmp_path / "big.pth"), tensors)
