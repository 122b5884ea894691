"""Hostile and damaged files in the place of torch.save's: nothing is run or imported, nothing costs what a file claims.

The pickles are put together by hand, instruction by instruction (see Python's pickletools).
"""

import argparse
import io
import pickle
import random
import struct
import sys
import tarfile
import tracemalloc
import zipfile

import pytest
import torch

from uvg_core.checkpoint import inert, inspect_checkpoint
from uvg_core.checkpoint.read import open_weights, read_part
from uvg_core.errors import UniViGUError


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module, function, *arguments):
    return name(module, function) + b"(" + b"".join(arguments) + b"tR"


def dictionary(**entries):
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def storage(key="0", count=2, kind=("torch", "FloatStorage")):
    return b"(" + text("storage") + name(*kind) + text(key) + text("cpu") + b"J" + struct.pack("<i", count) + b"tQ"


def tensor(stored, *numbers):
    """Offset, then size and stride of each dimension."""
    offset, *rest = (b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in numbers)
    shape, stride = b"(" + b"".join(rest[::2]) + b"t", b"(" + b"".join(rest[1::2]) + b"t"
    return call(
        "torch._utils", "_rebuild_tensor_v2", stored, offset, shape, stride, b"\x89", call("collections", "OrderedDict")
    )


TENSOR = tensor(storage(), 0, 2, 1)
GOOD = dictionary(w=TENSOR)
NUMBERS = struct.pack("<2f", 1.0, 2.0)


def save(folder, pickled, stem="x", members=None, method=zipfile.ZIP_STORED):
    path = folder / f"{stem}.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".", method)
        for member, data in (members or {"archive/data/0": NUMBERS}).items():
            archive.writestr(member, data, method)
    return path


def opens(path):
    """Whether a file opens and gives what is in it; everything else than our own error is a failure."""
    said = ""
    try:
        file = open_weights(path)
        for weight in file.tensors:
            file.read(weight)
        str(inspect_checkpoint(path))
    except UniViGUError as error:
        said = str(error)
    assert not said or (path.name in said and len(said) < 1500)
    return not said


COMMANDS = {
    ("os", "system"): "touch {}",
    ("posix", "system"): "touch {}",
    ("nt", "system"): "touch {}",
    ("subprocess", "getoutput"): "touch {}",
    ("os", "mkdir"): "{}",
    ("builtins", "eval"): "open('{}', 'w')",
    ("builtins", "exec"): "open('{}', 'w')",
    ("__builtin__", "eval"): "open('{}', 'w')",
    ("__builtin__", "__import__"): "planted",
    ("importlib", "import_module"): "planted",
    ("planted", "f"): "",
    ("planted", "Storage"): "",
    ("torch.hub", "load"): "{}",
    ("numpy", "load"): "{}",
    ("runpy", "run_path"): "{}",
    ("collections", "eval"): "open('{}', 'w')",
}
WAYS = {
    "reduce": lambda f, a: f + a + b"\x85R",
    "new": lambda f, a: f + a + b"\x85\x81",
    "new with keywords": lambda f, a: f + a + b"\x85}\x92",
    "object": lambda f, a: b"(" + f + a + b"o",
    "instance": lambda f, a: b"(" + a + b"i" + f[1:],
    "state": lambda f, a: name("planted", "Setting") + b")\x81" + f + a + b"\x85Rb",
    "set state": lambda f, a: call("planted", "Setting") + dictionary(__setstate__=f, x=a) + b"b" + a + b"b",
    "state of a dict": lambda f, a: call("collections", "OrderedDict") + dictionary(keys=f) + b"b",
    "chain": lambda f, a: name("functools", "reduce") + f + b"(" + a + b"l\x86R",
    "partial": lambda f, a: call("functools", "partial", f, a) + b")R",
    "attribute": lambda f, a: call("builtins", "getattr", name("os", "path"), text("system")) + a + b"\x85R",
    "map": lambda f, a: call("builtins", "list", call("builtins", "map", f, b"(" + a + b"l")),
    "from stack": lambda f, a: (
        text(f[1:].split(b"\n")[0].decode()) + text(f.split(b"\n")[1].decode()) + b"\x93" + a + b"\x85R"
    ),
    "typed": lambda f, a: call("torch._tensor", "_rebuild_from_type_v2", f, f, a + b"\x85", b"}"),
    "hooks": lambda f, a: tensor(storage(), 0, 2, 1)[:-2] + f + a + b"\x85R" + b"tR",
    "default": lambda f, a: call("collections", "defaultdict", f) + a + b"Ns",
    "a storage's kind": lambda f, a: b"(" + text("storage") + f + text("0") + text("cpu") + b"K\x02tQ",
    "persistent id": lambda f, a: f + a + b"\x85RQ",
    "a module's source": lambda f, a: b"(" + text("module") + f + a + a + a + b"tQ" + a + b"\x85R",
    "parameter": lambda f, a: call("torch._utils", "_rebuild_parameter", f + a + b"\x85R", b"\x88", b")"),
    "bytes as storage": lambda f, a: call(
        "torch.storage", "_load_from_bytes", b"C\x10" + pickle.dumps(1).ljust(16, b"N")
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_run_or_imported(way, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "planted.py").write_text(f"open({str(marker)!r}, 'w')\ndef f(*_): open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for number, ((module, function), argument) in enumerate(COMMANDS.items()):
        evil = WAYS[way](name(module, function), text(argument.format(marker)))
        path = save(tmp_path, dictionary(args=evil, model=dictionary(w=TENSOR)), f"beside {number}")
        assert opens(path)
        assert torch.equal(read_part(path, "")["w"], torch.tensor([1.0, 2.0]))
        opens(save(tmp_path, dictionary(model=dictionary(w=TENSOR, x=evil)), f"inside {number}"))
        assert not opens(save(tmp_path, evil, f"whole {number}"))
    assert not marker.exists()
    assert "planted" not in sys.modules


def test_the_planted_command_would_have_run(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(b"\x80\x02" + WAYS["reduce"](name("os", "mkdir"), text(str(marker))) + b".")
    assert marker.exists()


def test_sharded_weights_are_refused_by_name(tmp_path):
    dtensor = (
        name("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + name("torch._utils", "_rebuild_wrapper_subclass")
        + name("torch.distributed.tensor", "DTensor")
        + b")}tR"
    )
    path = save(tmp_path, dictionary(a=TENSOR, b=dtensor))
    with pytest.raises(UniViGUError, match=r"b is not stored in full \(found a torch.distributed.tensor.DTensor\)"):
        open_weights(path)


LIES = {
    "text": b"X\xff\xff\xff\xff",
    "long text": b"\x8d" + b"\xff" * 8,
    "bytes": b"B\xff\xff\xff\x7f",
    "long bytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "byte array": b"\x96" + b"\xff" * 7 + b"\x7f",
    "old text": b"T\xff\xff\xff\xff",
    "number": b"\x8b\xff\xff\xff\x7f",
    "negative": b"\x8b\xff\xff\xff\xff",
    "frame": b"\x95" + b"\xff" * 8,
    "memo": b"r\xff\xff\xff\xff",
    "memo in words": b"p" + b"9" * 5000 + b"\n",
    "nothing": b"h\x07",
    "nothing on the stack": b"0" * 9,
    "endless line": b"c" + b"a" * 70_000,
    "digits": b"I" + b"9" * 60_000 + b"\n",
    "digits and letters": b"Lxyz\n",
    "numbers": b"F" + b"9" * 60_000 + b"\n",
    "unknown instruction": b"\xff",
    "marks": b"(" * 1000,
    "items for a number": b"K\x01K\x02a",
    "entries for a number": b"K\x01K\x02K\x03s",
    "entries, one too many": b"}(K\x01u",
    "a name of numbers": b"K\x01K\x02\x93",
    "extensions": b"\x82\x01\x83\x01\x01\x84\x01\x01\x01\x01",
    "buffers": b"\x97\x98",
    "object of nothing": b"(o",
    "call of a number": b"K\x01)R",
    "arguments that are none": name("torch", "Size") + b"NR",
    "storage of nothing": call("torch._utils", "_rebuild_tensor_v2"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_cost_nothing(lie, tmp_path):
    for number, pickled in enumerate(
        (LIES[lie], b"}" + LIES[lie], GOOD + LIES[lie], dictionary(args=LIES[lie], w=TENSOR))
    ):
        path = save(tmp_path, pickled, str(number))
        tracemalloc.start()
        try:
            opens(path)
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


def doubled(first, body, times):
    """A value in the memo, then ``body`` of the one before, again and again."""
    steps = [first + b"q\x00"]
    for i in range(times):
        steps.append(body(b"h" + bytes([i])) + b"q" + bytes([i + 1]))
    return b"".join(steps)


BOMBS = {
    "laughs": lambda: doubled(text("lol"), lambda last: b"(" + last * 10 + b"t", 200),
    "laughing lists": lambda: doubled(b"]", lambda last: b"](" + last * 10 + b"e", 200),
    "laughing dicts": lambda: doubled(b"}", lambda last: b"}(" + (text("a") + last) + text("b") + last + b"u", 200),
    "a key that takes forever": lambda: doubled(b")", lambda last: last * 2 + b"\x86", 200) + b"q\xff0}h\xffNs",
    "a set that takes forever": lambda: doubled(b")", lambda last: last * 2 + b"\x86", 200) + b"q\xff0\x8f(h\xff\x90",
    "a frozen set": lambda: doubled(b")", lambda last: last * 2 + b"\x86", 200) + b"q\xff0(h\xff\x91",
    "deep tuples": lambda: b")" + b"\x85" * 100_000,
    "deep lists": lambda: b"]" * 100_000 + b"a" * 99_999,
    "deep dicts": lambda: b"}U\x01a" * 100_000 + b"N" + b"s" * 100_000,
    "deep calls": lambda: name("os", "system") + b"q\x00)" + b"\x85R\x85h\x00" * 3 + b"h\x00)R" * 30_000,
    "deep objects": lambda: name("os", "system") + b"q\x00" + b")\x81" * 50_000,
    "deep states": lambda: name("os", "system") + b"q\x00)\x81" + b"h\x00)\x81" * 30_000 + b"b" * 30_000,
    "deep types": lambda: (
        name("torch._tensor", "_rebuild_from_type_v2")
        + b"q\x00)q\x01"
        + b"(h\x00h\x00h\x01Ntq\x01" * 10_000
        + b"h\x00h\x01R"
    ),
    "copies of dicts": lambda: (
        b"(" + b"N" * 30_000 + b"lq\x000" + name("collections", "OrderedDict") + b"q\x01" + b"h\x01h\x00\x85R" * 9000
    ),
    "many steps": lambda: b"N0" * 100_000,
    "itself": lambda: b"}q\x00" + text("a") + b"h\x00s",
    "itself in a list": lambda: b"]q\x00h\x00a" * 1000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_do_not_go_off(bomb, tmp_path, monkeypatch):
    monkeypatch.setattr(inert, "MOST_STEPS", 150_000)
    pickled = BOMBS[bomb]()
    for stem, whole in (("whole", pickled), ("beside", dictionary(args=pickled, model=dictionary(w=TENSOR)))):
        opens(save(tmp_path, whole, stem))


TENSORS_THAT_ARE_NOT = {
    "petabytes": (tensor(storage(), 0, 1 << 50, 0), "not stored in full"),
    "petabytes, stored so": (tensor(storage(count=2**31 - 1), 0, 2**31 - 1, 1), "of the numbers of w"),
    "more than any": (tensor(storage(), 0, 1 << 40, 0, 1 << 40, 0), "not stored in full"),
    "behind zero": (tensor(storage(), 0, 0, 1, 1 << 40, 1, 1 << 40, 1), "not stored in full"),
    "negative size": (tensor(storage(), 0, -2, 1), "not stored in full"),
    "negative stride": (tensor(storage(), 1, 2, -1), "not stored in full"),
    "before the file": (tensor(storage(), -1, 2, 1), "not stored in full"),
    "beyond its storage": (tensor(storage(), 1, 2, 1), "goes beyond"),
    "wide strides": (tensor(storage(), 0, 2, 1 << 40), "goes beyond"),
    "many dimensions": (tensor(storage(), 0, *[1] * 400), "not stored in full"),
    "missing storage": (tensor(storage("7"), 0, 2, 1), "the numbers of w are not in it"),
    "storage elsewhere": (tensor(storage("../data/0"), 0, 2, 1), "the numbers of w are not in it"),
    "short storage": (tensor(storage(count=3), 0, 3, 1), "of the numbers of w, 12 bytes, 8 are in it"),
    "negative storage": (tensor(storage(count=-1), 0, 0, 1), "not stored in full"),
    "unknown storage": (tensor(storage(kind=("torch", "SecretStorage")), 0, 2, 1), "not stored in full"),
    "two types": (
        tensor(storage(), 0, 2, 1) + b"0" + tensor(storage(kind=("torch", "HalfStorage")), 0, 2, 1),
        "two types",
    ),
    "storage by another call": (
        call("torch._utils", "_rebuild_tensor_v2", call("os", "system"), b"N", b")", b")"),
        "not stored",
    ),
    "a tensor of bytes": (tensor(call("torch.storage", "_load_from_bytes", b"C\x01x"), 0, 2, 1), "not stored in full"),
    "an odd persistent id": (tensor(b"(K\x01tQ", 0, 2, 1), "not stored in full"),
    "a persistent id in words": (tensor(b"P0\n", 0, 2, 1), "not stored in full"),
}


@pytest.mark.parametrize("kind", TENSORS_THAT_ARE_NOT)
def test_tensors_that_are_not_there(kind, tmp_path):
    pickled, says = TENSORS_THAT_ARE_NOT[kind]
    with pytest.raises(UniViGUError, match=rf"x\.pth: .*{says}"):
        open_weights(save(tmp_path, dictionary(w=pickled)))


ARCHIVES = {
    "compressed": (lambda f: save(f, GOOD, method=zipfile.ZIP_DEFLATED), "a compressed or encrypted archive"),
    "a zip bomb": (
        lambda f: save(f, GOOD, members={"archive/data/0": bytes(10**7)}, method=zipfile.ZIP_BZIP2),
        "compressed",
    ),
    "without a table": (lambda f: written(f, {"a/data/0": NUMBERS}), "0 tables of contents"),
    "with two": (lambda f: written(f, {"a/data.pkl": b"}.", "b/data.pkl": b"}."}), "2 tables of contents"),
    "a program": (lambda f: save(f, GOOD, members={"archive/constants.pkl": b"N."}), "a TorchScript program"),
    "names twice": (lambda f: written(f, [("a/data.pkl", b"}."), ("a/data.pkl", b"}.")]), "a/data.pkl is in it twice"),
    "empty table": (lambda f: written(f, {"a/data.pkl": b""}), "ends in the middle"),
    "of text": (lambda f: written(f, {"notes.txt": b"hello"}), "0 tables of contents"),
    "another order of bytes": (
        lambda f: save(f, GOOD, members={"archive/data/0": NUMBERS, "archive/byteorder": b"middle"}),
        "byte order 'middle'",
    ),
}


def written(folder, members):
    path = folder / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(member, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_torch_does_not_write(kind, tmp_path):
    make, says = ARCHIVES[kind]
    with pytest.raises(UniViGUError, match=rf"x\.pth: .*{says}"):
        open_weights(make(tmp_path))


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    path = save(
        tmp_path, GOOD, members={"archive/data/0": NUMBERS, "../../evil": b"x", "/etc/passwd": b"x", "C:\\x": b"x"}
    )
    assert torch.equal(read_part(path, "")["w"], torch.tensor([1.0, 2.0]))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pth"]


def test_tar_archives_of_torch_are_named(tmp_path):
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.add(__file__, "pickle")
    with pytest.raises(UniViGUError, match=r"old\.pth: found a tar archive"):
        open_weights(tmp_path / "old.pth")


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_damage_anywhere_gives_one_sentence(form, tmp_path):
    whole, path = io.BytesIO(), tmp_path / "damaged.pth"
    saved = {"model": {"a": torch.ones(3), "b": torch.ones(4, 2).T}, "args": argparse.Namespace(a=1)}
    torch.save(saved, whole, _use_new_zipfile_serialization=form == "zip")
    whole = whole.getvalue()
    chance = random.Random(1)
    opened = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 20))):
            at = chance.randrange(min(len(data), 900))
            if chance.random() < 0.6:
                data[at] = chance.randrange(256)
            elif chance.random() < 0.5:
                del data[at : at + chance.randrange(1, 9)]
            else:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
        path.write_bytes(data)
        opened += opens(path)
    for size in range(0, len(whole), 61):
        path.write_bytes(whole[:size])
        assert not opens(path)
    assert 0 < opened < 150
