"""The cache that training reads: latents, prompt conditions and tokens, computed once and kept in safetensors shards.

A cache folder holds ``index.json``, ``uvg-empty.safetensors`` (the empty prompt, which replaces dropped conditions) and
``uvg-shard-00000.safetensors`` and so on. ``build.py`` writes them.

In a shard, with N clips, n a clip's tokens and r the rows of its condition:

    latents               float16 [N,16,F,h,w], in the checkpoint's latent space
    prompt_ids            int32 [sum of n], clip i's from prompt_id_offsets[i] to [i+1]; with the end-of-text token
    prompt_states         float16 [sum of r, E], clip i's from prompt_state_offsets[i] to [i+1]
    detail_*              the same for detailed captions; a clip without one has no ids

Float16, not bfloat16: latents and states lie within about -30..30, where float16 resolves eight times as finely, and
finer than bfloat16 weights compute them. Clips with values that do not fit are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoint.read import open_safetensors
from ..errors import UniViGUError
from ..io import write_text
from .folder import LeftOut
from .sources import digest

FORMAT, VERSION = "uni-vigu shards", 1
INDEX, EMPTY = "index.json", "uvg-empty.safetensors"


@dataclass(frozen=True)
class Sample:
    """One clip as training reads it; texts have their own lengths.

    latent         float32 ``[16,F,h,w]``, in the checkpoint's latent space
    prompt_ids     int64 ``[n]``, with the end-of-text token
    prompt_states  float32 ``[r,E]``: rows of the prompt condition, to be followed by zeros up to ``context_length``
    detail_*       the same of the detailed caption; both None for a clip without one
    """

    latent: Tensor
    prompt_ids: Tensor
    prompt_states: Tensor
    detail_ids: Tensor | None
    detail_states: Tensor | None
    name: str


class Shards(Dataset[Sample]):
    """A cache folder as a data set. Files are mapped, not loaded: it may be larger than memory.

    With ``in_memory`` everything is read once, at half the size of what ``Sample`` holds. May be handed to the workers
    of a DataLoader, forked or spawned: each opens the files itself, when it first reads from them.

    Raises UniViGUError when the folder holds no whole cache: ``build_shards`` makes one, and checks more (here each
    file's size and header, not its checksum).
    """

    def __init__(self, folder: str | Path, *, in_memory: bool = False) -> None:
        self.folder, self.in_memory = Path(folder), in_memory
        index = Index.read(self.folder)
        there = sum(shard.items for shard in index.shards) if index else 0
        if index is None or index.items != there:
            found = "no whole index" if index is None else f"{there} clips of {index.items}"
            raise UniViGUError(
                f"{self.folder}: not a whole cache of training shards (found {found}); build it, or let an interrupted "
                "build finish"
            )
        for shard in (index.empty, *index.shards):
            fault = shard.fault(self.folder, thorough=False)
            if fault:
                raise UniViGUError(f"{self.folder / shard.file}: the shard {fault}; build the cache again to mend it")
        self._shards = tuple(shard for shard in index.shards if shard.clips)
        self._starts = [0, *accumulate(shard.clips for shard in self._shards)]
        self._open: dict[str, _OpenShard] = {}
        self._process = os.getpid()
        self.fingerprint = digest([index.source, index.encoders])
        self.left_out = tuple(one for shard in index.shards for one in shard.left_out)
        self.details = sum(shard.details for shard in self._shards)
        self.longest_prompt = max((shard.longest_prompt for shard in self._shards), default=0)
        self.longest_detail = max((shard.longest_detail for shard in self._shards), default=0)
        empty = _OpenShard(self.folder / EMPTY, in_memory=True)
        self.empty_ids: Tensor = empty["ids"][:].long()
        self.empty_states: Tensor = empty["states"][:].float()
        for shard in self._shards if in_memory else ():
            self._opened(shard.file)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        shard, row = self._opened(self._shards[number].file), index - self._starts[number]
        detail_ids = shard.ragged("detail_id", row).long()
        has_detail = len(detail_ids) > 0
        return Sample(
            latent=shard["latents"][row].float(),
            prompt_ids=shard.ragged("prompt_id", row).long(),
            prompt_states=shard.ragged("prompt_state", row).float(),
            detail_ids=detail_ids if has_detail else None,
            detail_states=shard.ragged("detail_state", row).float() if has_detail else None,
            name=shard.names[row],
        )

    def _opened(self, file: str) -> _OpenShard:
        if self._process != os.getpid() and not self.in_memory:  # forked: what is mapped belongs to the parent
            self._open, self._process = {}, os.getpid()
        if file not in self._open:
            self._open[file] = _OpenShard(self.folder / file, self.in_memory)
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}


class _OpenShard:
    """A shard that is mapped or, ``in_memory``, read: by name, something that gives tensors by index and slice and
    reads no more than is asked for."""

    def __init__(self, path: Path, in_memory: bool) -> None:
        file: Any = safe_open(path, "pt")
        self.names: list[str] = json.loads((file.metadata() or {}).get("names", "[]"))
        names = list(file.keys())
        self._tensors = {name: file.get_tensor(name).clone() for name in names} if in_memory else {}
        self._file: Any = None if in_memory else file

    def __getitem__(self, name: str) -> Any:
        return self._tensors[name] if self._file is None else self._file.get_slice(name)

    def ragged(self, name: str, row: int) -> Tensor:
        """Row ``row`` of rows of different lengths that are stored as one tensor and its offsets."""
        begin, end = self[f"{name}_offsets"][row : row + 2].tolist()
        rows: Tensor = self[f"{name}s"][begin:end]
        return rows


# The index


@dataclass(frozen=True)
class ShardEntry:
    """The index's entry of one shard file; ``content`` is a digest of what it was built from."""

    file: str
    content: str
    first: int = 0
    items: int = 0
    clips: int = 0
    details: int = 0
    longest_prompt: int = 0
    longest_detail: int = 0
    bytes: int = 0
    sha256: str = ""
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShardEntry:
        return cls(**{**data, "left_out": tuple(LeftOut(*one) for one in data["left_out"])})

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "left_out": [list(vars(one).values()) for one in self.left_out]}

    def fault(self, folder: Path, thorough: bool) -> str:
        """What is wrong with the file, '' for nothing; only ``thorough`` reads all of it."""
        path = folder / self.file
        if not path.is_file():
            return "is missing"
        try:
            size = path.stat().st_size
            if size != self.bytes:
                return f"has {size} bytes instead of {self.bytes}"
            if open_safetensors(path).metadata.get("content") != self.content:
                return "holds other clips than the index says"  # a build was stopped between the two
            return "does not match its checksum" if thorough and sha256_of(path) != self.sha256 else ""
        except UniViGUError:
            return "has a damaged header"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"


@dataclass(frozen=True)
class Index:
    """``index.json``: fingerprints of source and encoders, clips of the source, and an entry for each file."""

    source: str
    encoders: str
    items: int
    empty: ShardEntry
    shards: tuple[ShardEntry, ...]

    def write(self, folder: Path) -> None:
        entries = {"empty": self.empty.to_json(), "shards": [shard.to_json() for shard in self.shards]}
        data = {"format": FORMAT, "version": VERSION, **vars(self), **entries}
        write_text(folder / INDEX, json.dumps(data, indent=1, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> Index | None:
        """None where there is none, none that is whole, or one of another version: the cache is to be built.

        Raises UniViGUError for an index of something else."""
        path = folder / INDEX
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UniViGUError(f"{path}: cannot be read ({error}). Delete it, or choose another cache folder") from None
        try:
            data = json.loads(text)
        except ValueError:
            data = {"format": FORMAT} if any(folder.glob("uvg-shard-*.safetensors")) else None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UniViGUError(
                f"{path}: found an index of something else, expected one of training shards or none. Choose another "
                "folder for the cache"
            )
        if data.get("version") != VERSION:
            return None
        try:
            shards = tuple(ShardEntry.from_json(entry) for entry in data["shards"])
            return cls(data["source"], data["encoders"], data["items"], ShardEntry.from_json(data["empty"]), shards)
        except (KeyError, TypeError):
            return None


def sha256_of(path: Path) -> str:
    """A file's checksum, in hex."""
    result = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            result.update(block)
    return result.hexdigest()
