"""Whatever is handed in place of weights: one clear sentence with the file's name, never a traceback from inside."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from uvg_core.checkpoint import (
    Overrides,
    convert,
    init_from_wan,
    inspect_checkpoint,
    load_model,
    read_config,
    read_part,
)
from uvg_core.errors import UniViGUError


class Hostile:
    """Runs a command where a pickle is trusted."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def header_only(text):
    return len(text).to_bytes(8, "little") + text


BAD_FILES = {
    "empty (0 bytes)": b"",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6100000000\n",
    "web page": b"\n<!DOCTYPE html><html><body>401</body></html>",
    "GGUF": b"GGUF\x03\x00\x00\x00" + bytes(40),
    "neither safetensors nor": b"These are my notes about the model, not the model.",
    "header claims": (1 << 40).to_bytes(8, "little") + b"{" + bytes(99),
    "incomplete: found 109 bytes": (5000).to_bytes(8, "little") + b"{" + b" " * 100,
    "header is not readable": header_only(b'{"a": nonsense}'),
    "not readable: 'data_offsets'": header_only(b'{"a": {"dtype": "F32", "shape": [1]}}'),
    "takes 3 bytes": header_only(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}}') + b"abc",
    "promises at least": header_only(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}') + b"abc",
    "found an unknown kind of file": header_only(b"{}"),
    "damaged or incomplete": b"PK\x03\x04" + bytes(200),
    "bare pickle": pickle.dumps({"model": 1}),
}


@pytest.mark.parametrize("message", BAD_FILES)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_bad_files(message, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD_FILES[message])
    for attempt in (
        lambda: load_model(path),
        lambda: read_config(path),
        lambda: init_from_wan(path, vocab_size=9),
        lambda: convert(path, tmp_path / "out.safetensors"),
    ):
        with pytest.raises(UniViGUError) as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert message in str(caught.value)
    if "unknown kind" not in message:
        for attempt in (lambda: inspect_checkpoint(path), lambda: read_part(path, "")):
            with pytest.raises(UniViGUError):
                attempt()


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_refused_and_never_run(zipped, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    if zipped:
        torch.save({"model": Hostile(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Hostile(marker)}))
    for attempt in (load_model, inspect_checkpoint, read_config):
        with pytest.raises(UniViGUError, match=r"evil\.pth.*(nothing in it was executed|was not opened)"):
            attempt(path)
    assert not marker.exists()
    if zipped:
        with pytest.raises(UniViGUError, match=r"no tensors in it \(entries: model \(\w+\.mkdir\)"):
            load_model(path)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"model": {}}, {"model": {"a": 1}}, {"step": 3}, torch.ones(3)])
def test_checkpoints_without_named_tensors(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UniViGUError, match=r"x\.pth.*expected a dict of tensors by name"):
        load_model(tmp_path / "x.pth")


def test_truncated_files(model, tools, tmp_path):
    for layout in ("native", "release"):
        path = tools.write_uni_vigu(model, layout, tmp_path)
        whole = path.read_bytes()
        for size in (len(whole) - 1, len(whole) // 2, 4000, 100, 9):
            path.write_bytes(whole[:size])
            with pytest.raises(UniViGUError, match=path.name):
                load_model(path)


def test_missing_paths_and_folders(model, tools, tmp_path):
    with pytest.raises(UniViGUError, match="no such file or folder"):
        load_model(tmp_path / "nowhere.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UniViGUError, match="no weights in this folder"):
        load_model(tmp_path / "empty")
    path = tools.write_uni_vigu(model, "native", tmp_path / "two")
    assert load_model(path.parent).config == load_model(path).config
    path.with_name("other.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(UniViGUError, match=r"several files could be meant \(model.safetensors, other.safetensors"):
        load_model(path.parent)


@pytest.mark.parametrize("weight_map", [None, {}, [1]])
def test_broken_shard_indices(weight_map, tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UniViGUError, match=r"index\.json: not a shard index"):
        load_model(tmp_path)


def changed(weights, change):
    """Ways in which weights contradict each other."""
    if change == "a block is missing":
        return {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.0.")}
    if change == "a middle block is missing":
        return {name.replace("blocks.1.", "blocks.2."): tensor for name, tensor in weights.items()}
    if change == "another expert width":
        return weights | {"blocks.1.ffn_t.0.weight": torch.ones(44, 24)}
    if change == "another vocabulary":
        return weights | {"text_head.head.weight": torch.ones(30, 24)}
    if change == "a foreign key":
        return weights | {"blocks.0.img_emb.weight": torch.ones(3)}
    if change == "a wild block number":
        return weights | {"blocks.99999999999.ffn.0.weight": torch.ones(3)}
    if change == "a flat convolution":
        return weights | {"patch_embedding.weight": torch.ones(24, 64)}
    return weights | {"patch_embedding.weight": torch.ones(0, 16, 1, 2, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a block is missing", "blocks.0.ffn.0.weight is missing"),
        ("a middle block is missing", r"missing \(first: blocks.1.modulation"),
        ("another expert width", r"blocks.1.ffn_t.0.weight, found \[44, 24\], expected \[40, 24\]"),
        ("another vocabulary", r"text_head.head.weight, found \[30, 24\], expected \[31, 24\]"),
        ("a foreign key", r"1 unexpected \(first: blocks.0.img_emb.weight"),
        ("a wild block number", "first: blocks.2.modulation"),
        ("a flat convolution", "expected 5 dimensions"),
        ("an empty weight", r"shape \[0, 16"),
    ],
)
def test_weights_that_do_not_fit_together(model, tools, tmp_path, change, message):
    path = tools.write_uni_vigu(model, "native", tmp_path)
    save_file(changed(load_file(path), change), path, {"config": '{"transformer": {"num_heads": 2}}'})
    for attempt in (load_model, lambda p: convert(p, tmp_path / "out.safetensors")):
        with pytest.raises(UniViGUError, match=rf"model\.safetensors.*{message}"):
            attempt(path)


def test_two_weights_for_one_place(model, tools, tmp_path):
    weights = tools.weights_of(model)
    torch.save({"module.head.modulation": weights["head.modulation"], **weights}, tmp_path / "x.pth")
    with pytest.raises(UniViGUError, match=r"both stand for head\.modulation"):
        load_model(tmp_path / "x.pth", overrides=Overrides(num_heads=2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"transformer": []}', "not a JSON object"),
        ('{"transformer": {"num_heads": "two"}}', "'two'"),
        ('{"transformer": {"num_heads": 0}}', "divide width 24"),
        ('{"transformer": {"num_heads": 2, "text_flow": "prose"}}', "'prose'; expected one of discrete"),
        ('{"transformer": {"num_heads": 2, "kappa_exponent": "x"}}', "model.safetensors"),
    ],
)
def test_bad_metadata(model, tmp_path, config, message):
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors", {"config": config})
    with pytest.raises(UniViGUError, match=message) as caught:
        load_model(tmp_path / "model.safetensors")
    assert "model.safetensors" in str(caught.value)


def test_other_kinds_of_models_are_named(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"decoder.conv1.weight": torch.ones(2), "encoder.conv1.weight": torch.ones(2)}, path)
    with pytest.raises(UniViGUError, match=r"v\.safetensors: not a Uni-ViGU checkpoint: found a VAE.*expected a net"):
        load_model(path)
    with pytest.raises(UniViGUError, match=r"not a Wan2\.1 base: found a VAE"):
        init_from_wan(path, vocab_size=9)


NESTED = "[" * 200_000
HOSTILE_ENTRIES = {
    "nested without end": '{"a": ' + NESTED + "}",
    "nested metadata": '{"__metadata__": {"x": ' + "[" * 900 + "]" * 900 + '}, "a": ' + NESTED + "}",
    "infinite shape": '{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}',
    "NaN shape": '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}',
    "float shape": '{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
    "true shape": '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
    "text shape": '{"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}',
    "negative shape": '{"a": {"dtype": "F32", "shape": [-4, -16], "data_offsets": [0, 256]}}',
    "huge shape": '{"a": {"dtype": "F32", "shape": [0, 99999999999, 99999999999], "data_offsets": [0, 0]}}',
    "endless shape": '{"a": {"dtype": "F32", "shape": [' + "1," * 1000 + '1], "data_offsets": [0, 4]}}',
    "digits without end": '{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}}',
    "null shape": '{"a": {"dtype": "F32", "shape": null, "data_offsets": [0, 4]}}',
    "float offsets": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}',
    "bool offsets": '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [false, true]}}',
    "negative offsets": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
    "offsets backwards": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}',
    "three offsets": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}',
    "infinite offsets": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}',
    "an object as offsets": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": {"0": 0, "4": 4}}}',
    "far away": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [9000000000, 9000000004]}}',
    "wide unknown type": '{"a": {"dtype": "F4", "shape": [1000000000000], "data_offsets": [0, 4]}}',
    "dtype is a list": '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
    "twice the same bytes": '{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, '
    '"b": {"dtype": "U8", "shape": [4], "data_offsets": [3, 7]}}',
    "an entry is a number": '{"a": 1}',
    "metadata is a list": '{"__metadata__": [1], "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
}


@pytest.mark.parametrize("what", HOSTILE_ENTRIES)
def test_hostile_headers_are_refused_on_opening(what, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(header_only(HOSTILE_ENTRIES[what].encode()) + bytes(300))
    for attempt in (inspect_checkpoint, load_model, read_config, lambda p: read_part(p, "")):
        with pytest.raises(UniViGUError, match=r"hostile\.safetensors.*(Download or copy it again)") as caught:
            attempt(path)
        assert len(str(caught.value)) < 1000


def test_types_of_tomorrow_are_still_carried(tmp_path):
    entries = '{"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [0, 3], '
    path = tmp_path / "new.safetensors"
    path.write_bytes(header_only((entries + '"data_offsets": [4, 4]}}').encode()) + b"abcd")
    part = read_part(path, "")
    assert bytes(part["a"].tolist()) == b"abcd"
    assert part["b"].shape == (0, 3)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(1).expand(1240, 1240, 1_000_000), r"found 4 bytes for shape \[1240, 1240, 1000000\]"),
        (torch.ones(3, 1).expand(3, 2), "found 12 bytes"),
        (torch.ones(5).as_strided((3, 3), (1, 1)), "found 20 bytes"),
        (torch.eye(3).to_sparse(), "found a sparse tensor"),
        (torch.ones(3, device="meta"), "found a meta tensor"),
    ],
)
def test_tensors_that_are_not_stored_in_full(tensor, says, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.ones(2), "b": tensor}}, path)
    assert path.stat().st_size < 4000
    for attempt in (inspect_checkpoint, load_model, lambda p: read_part(p, "")):
        with pytest.raises(UniViGUError, match=rf"x\.pth: b is not stored in full.*{says}"):
            attempt(path)


def test_views_transposed_and_shared_tensors_are_stored_in_full(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "t": whole.T,
        "part": whole[1:, ::2],
        "tied": whole,
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.0),
    }
    torch.save(tensors, tmp_path / "x.pth")
    for name, tensor in read_part(tmp_path / "x.pth", "").items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize(
    "step", [10**30, -1, float("inf"), float("nan"), "12", [12]], ids=lambda step: type(step).__name__
)
def test_steps_that_are_none(step, tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "step": step}, tmp_path / "x.pth")
    report = inspect_checkpoint(tmp_path / "x.pth")
    assert report.checkpoint.weights.step is None
    assert "\nstep" not in str(report)


@pytest.mark.parametrize("attempt", [load_model, inspect_checkpoint, read_config, lambda path: read_part(path, "")])
def test_paths_that_cannot_be(attempt, tmp_path, monkeypatch):
    save_file({"a": torch.ones(1)}, tmp_path / "here.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UniViGUError, match="empty path"):
        attempt("")
    for path in ("x" * 5000, "x" * 300, tmp_path / ("y" * 5000), "/".join(["d"] * 5000)):
        with pytest.raises(UniViGUError, match="name too long") as caught:
            attempt(path)
        assert len(str(caught.value)) < 600
    for path, says in (("a\0b", "cannot be looked up"), ("~nobody_of_this_name/x", "cannot be looked up")):
        with pytest.raises(UniViGUError, match=says):
            attempt(path)
    with pytest.raises(UniViGUError, match="no such file"):
        attempt(tmp_path / "here.safetensors" / "inside")
    if hasattr(os, "mkfifo"):  # not on Windows
        os.mkfifo("pipe")
        with pytest.raises(UniViGUError, match="a device or a pipe"):
            attempt("pipe")


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000, "-1", "", "99999999999"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_odd_block_numbers_are_unexpected_weights(model, tools, tmp_path, number, prefix):
    weights = {prefix + name: tensor for name, tensor in tools.weights_of(model).items()}
    weights[f"{prefix}blocks.{number}.x"] = torch.ones(1)
    path = tmp_path / "x.safetensors"
    save_file(weights, path, {"config": '{"transformer": {"num_heads": 2}}'})
    report = inspect_checkpoint(path)
    assert not report.complete
    if number != "99999999999":  # this one reads as a file that lacks blocks
        assert report.misfit.unexpected == (f"blocks.{number}.x",)
    with pytest.raises(UniViGUError, match=r"x\.safetensors: .*do not make up a whole network"):
        load_model(path)


@pytest.mark.parametrize("name", [[1], 7, "x" * 5000])
def test_shard_indices_with_odd_names(name, tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name, "b": "one.safetensors"}}))
    with pytest.raises(UniViGUError, match=r"index\.json: (not a shard index|lists 2 shards)"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["m.safetensors.index.json", "config.json"])
def test_json_nested_without_end(name, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    (tmp_path / name).write_text('{"a": ' + NESTED)
    with pytest.raises(UniViGUError, match=rf"{name}: cannot be read as JSON"):
        load_model(tmp_path)
