"""Files of weights that would take memory or time, or lead elsewhere: refused before they do."""

import json
import os
import random
import re
import struct
import time
import tracemalloc
import zipfile

import pytest
import torch
from lora_cases import Case, Q
from safetensors.torch import save_file
from tiny_networks import TINY, random_network

from uvg_core.checkpoint import Lora, LoraChoice, load_model
from uvg_core.checkpoint.peft_patterns import Patterns
from uvg_core.checkpoint.read import open_weights
from uvg_core.config import RunConfig
from uvg_core.errors import UniViGUError
from uvg_core.media.null_embedding import read_null_embedding
from uvg_core.media.tokenizer import Tokenizer
from uvg_core.pipeline.component_files import ComponentFile
from uvg_core.versions import require

INDEX = "m.safetensors.index.json"


def index(folder, **weight_map):
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder / INDEX


@pytest.mark.parametrize(
    "name", ["../w/secret", "/etc/passwd", "sub/m.safetensors", "..", ".", "", "..\\secret", "C:secret", "\0", "w/../m"]
)
def test_an_index_names_files_beside_it_alone(name, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "secret").write_text("root:x:0:0:very secret")
    with pytest.raises(UniViGUError, match="names a shard outside its folder") as caught:
        open_weights(index(tmp_path / "model", x=name))
    assert "secret:" not in str(caught.value)
    assert "very" not in str(caught.value)


def test_shards_may_be_links_as_in_the_hub_s_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    save_file({"x": torch.ones(2)}, tmp_path / "blobs" / "0123")
    path = index(tmp_path / "snapshot", x="m-1-of-1.safetensors")
    (tmp_path / "snapshot" / "m-1-of-1.safetensors").symlink_to("../blobs/0123")
    assert open_weights(path).read("x").tolist() == [1, 1]


def test_a_shard_that_is_no_weights_is_not_shown(tmp_path):
    (tmp_path / "m.bin").write_text("root:x:0:0:very secret")
    with pytest.raises(UniViGUError, match="neither safetensors nor a torch checkpoint") as caught:
        open_weights(index(tmp_path, x="m.bin"))
    assert "very secret" not in str(caught.value)


def test_tensors_that_an_index_lists_are_there_once(tmp_path):
    for number in (1, 2):
        save_file({"x": torch.ones(2), f"y{number}": torch.ones(1)}, tmp_path / f"{number}.safetensors")
    path = index(tmp_path, x="1.safetensors", gone="2.safetensors")
    with pytest.raises(UniViGUError, match=r"lists 1 tensors that its shards do not hold \(first: gone, in 2\."):
        open_weights(path)
    with pytest.raises(UniViGUError, match="x is in two shards"):
        open_weights(index(tmp_path, x="1.safetensors", y2="2.safetensors"))


def header(path, text, length=None):
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
    return path


def test_headers_and_metadata_are_bounded(tmp_path):
    path = tmp_path / "x.safetensors"
    tracemalloc.start()
    with pytest.raises(UniViGUError, match="the header claims 20000000 bytes, more than"):
        open_weights(header(path, b'{"a":' + b"[" * 19_999_995))
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
    entries = json.dumps({"__metadata__": {str(n): "" for n in range(5000)}}).encode()
    with pytest.raises(UniViGUError, match="5000 entries of metadata, more than 4096"):
        open_weights(header(path, entries))


def test_the_list_of_a_zip_s_members_is_bounded_before_it_is_read(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}{'x' * 900}", b"")
    before = time.monotonic()
    tracemalloc.start()
    with pytest.raises(UniViGUError, match="the list of its members claims"):
        open_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert time.monotonic() - before < 2


def peft_lora(folder, **facts):
    case = Case(dict(random_network().state_dict()), torch.Generator().manual_seed(1))
    case.pair(f"base_model.model.{Q}", Q)
    case.stem, case.config = "adapter_model", {"lora_alpha": 4, "r": 4, **facts}
    return Lora(LoraChoice(case.write(folder)), TINY)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(x|xx)*", "(?=a)", "a{1,99999}", r"(a)\1", "((a))"])
def test_regular_expressions_of_strangers_are_not_run(pattern, tmp_path):
    with pytest.raises(UniViGUError, match=r"adapter_config\.json cannot be read.*pattern"):
        peft_lora(tmp_path, alpha_pattern={pattern: 2})


def test_patterns_that_take_long_are_given_up(tmp_path):
    began = time.monotonic()
    patterns = Patterns({f"{'.*q' * 300}{n}": 1 for n in range(1000)}, 0.2)
    with pytest.raises(ValueError, match="patterns take too long"):
        patterns.number_of(["q" * 2000])
    assert time.monotonic() - began < 30
    assert peft_lora(tmp_path, alpha_pattern={".*" * 100 + "x": 2}).match.video == 1


PATTERNS = [
    "self_attn.q",
    r"blocks\.\d+\.attn1\.to_q",
    ".*",
    "^blocks.0",
    r".*attn.*\.(q|k|v)",
    "q|k",
    "blocks.(0|1).*",
]
PATTERNS += [r"^transformer\.blocks\.[0-9]+\.ffn\.[02]$", r"attn\d?\.to_.*?", "x?y*z+", "[^a]b", "self-attn.q", "a.+b"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_peft_matches(pattern):
    choice = random.Random(0)
    names = [
        "self_attn.q",
        "blocks.0.self_attn.q",
        "a.blocks.12.attn1.to_q",
        "blocks.0",
        "transformer.blocks.3.ffn.2",
        "",
    ]
    names += ["".join(choice.choices("ab.xyzqk01", k=choice.randrange(9))) for _ in range(500)]
    patterns = Patterns({pattern: 2}, 1.0)
    for name in names:
        expected = 2.0 if re.fullmatch(rf"(.*\.)?({pattern})", name) else 1.0
        assert patterns.number_of([name]) == expected, name


def test_tokenizers_are_bounded(tmp_path):
    path = tmp_path / "spiece.model"
    with path.open("wb") as file:
        file.truncate(1 << 27)  # takes no place
    with pytest.raises(UniViGUError, match="larger than 64 MB; expected the SentencePiece model"):
        ComponentFile(path).read_tokenizer()
    save_file({"spiece_model": torch.zeros((1 << 26) + 1, dtype=torch.uint8)}, tmp_path / "t.safetensors")
    with pytest.raises(UniViGUError, match="spiece_model has 67108865 bytes; expected the SentencePiece model"):
        ComponentFile(tmp_path / "t.safetensors", "spiece_model").read_tokenizer()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among its files")
def test_a_pipe_is_no_tokenizer(tmp_path):
    os.mkfifo(tmp_path / "pipe.model")
    with pytest.raises(UniViGUError, match="not a regular file"):
        ComponentFile(tmp_path / "pipe.model").read_tokenizer()


def test_an_old_sentencepiece_is_refused(monkeypatch):
    pytest.importorskip("sentencepiece")
    require.cache_clear()
    monkeypatch.setattr("uvg_core.versions.version", lambda package: "0.2.1")
    with pytest.raises(UniViGUError, match=r"sentencepiece 0\.2\.1 is installed, 0\.2\.3 or newer is needed"):
        Tokenizer(b"", RunConfig())
    require.cache_clear()


def test_null_conditions_are_not_unpickled_by_torch(tmp_path, monkeypatch):
    torch.save([torch.ones(5, 20)], tmp_path / "null.pt")
    monkeypatch.setattr(torch, "load", None)
    assert read_null_embedding(tmp_path / "null.pt").shape == (1, 5, 20)


def test_a_config_that_is_a_pipe_or_huge(tmp_path):
    save_file(dict(random_network().state_dict()), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"x": "' + "x" * (1 << 24) + '"}')
    with pytest.raises(UniViGUError, match=r"config\.json: is larger than 16 MB"):
        load_model(tmp_path)
