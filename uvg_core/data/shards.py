"""The cache that training reads: latents, prompt conditions and tokens, computed once and kept in safetensors shards.

A cache folder holds ``index.json``, ``uvg-empty.safetensors`` (the empty prompt, which replaces dropped conditions) and
``uvg-shard-00000.safetensors`` and so on. ``build.py`` writes them.

In a shard, with N clips, n a clip's tokens and r the rows of its condition:

    latents               float16 [N,16,F,h,w], in the checkpoint's latent space
    prompt_ids            int32 [sum of n], clip i's from prompt_id_offsets[i] to [i+1]; with the end-of-text token
    prompt_states         float16 [sum of r, E], clip i's from prompt_state_offsets[i] to [i+1]
    detail_*              the same for detailed captions; a clip without one has no ids
    wordings              int64 [N+1], where clips have several prompts: those of clip i are the prompts from
                          wordings[i] to [i+1], and N above is their number
    detail_wordings       the same where they have several detailed captions

Float16, not bfloat16: latents and states lie within about -30..30, where float16 resolves eight times as finely, and
finer than bfloat16 weights compute them. Clips with values that do not fit are left out.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoint.read import open_safetensors
from ..errors import UniViGUError
from ..io import read_text, write_text
from .left_out import LeftOut
from .sources import digest

FORMAT, VERSION = "uni-vigu shards", 1
INDEX, EMPTY = "index.json", "uvg-empty.safetensors"
_LARGEST_INDEX = 2**27
SMALL = 2**32  # bytes of a cache that is read into memory unasked


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

    With ``in_memory`` everything is read once, at half the size of what ``Sample`` holds; None does that where all
    files together are under 4 GiB. May be handed to the workers of a DataLoader.

    Raises UniViGUError when the folder holds no whole cache: ``build_shards`` makes one, and checks more (here each
    file's size and header, not its checksum).
    """

    def __init__(self, folder: str | Path, *, in_memory: bool | None = False) -> None:
        self.folder = Path(folder)
        index = Index.read(self.folder)
        there = sum(shard.items for shard in index.shards) if index else 0
        if index is None or index.items != there:
            found = "no complete index" if index is None else f"{there} clips of {index.items}"
            raise UniViGUError(
                f"{self.folder}: the cache of training shards is incomplete (found {found}); build it, or finish the "
                "interrupted build"
            )
        for shard in (index.empty, *index.shards):
            if fault := shard.fault(self.folder, thorough=False):
                raise UniViGUError(f"{self.folder / shard.file}: the shard {fault}; build the cache again to repair it")
        self.in_memory = sum(shard.bytes for shard in index.shards) < SMALL if in_memory is None else in_memory
        self._shards = [shard for shard in index.shards if shard.clips]
        self._starts = [0, *accumulate(shard.clips for shard in self._shards)]
        self._open: dict[str, _OpenShard] = {}
        self.fingerprints = index.fingerprints()
        self.left_out = [one for shard in index.shards for one in shard.left_out]
        self.details = sum(shard.details for shard in self._shards)
        self.longest_prompt = max((shard.longest_prompt for shard in self._shards), default=0)
        self.longest_detail = max((shard.longest_detail for shard in self._shards), default=0)
        empty = self._opened(EMPTY).parts
        self.empty_ids: Tensor = empty["ids"][:].long()
        self.empty_states: Tensor = empty["states"][:].float()
        for shard in self._shards if self.in_memory else ():
            self._opened(shard.file)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, wording: float = 0.0) -> Sample:
        """A clip; ``wording``, from 0 to below 1, chooses among its prompts and among its detailed captions."""
        index = range(len(self))[index]  # raises IndexError
        number = bisect_right(self._starts, index) - 1
        shard, row = self._opened(self._shards[number].file), index - self._starts[number]
        prompt = shard.place("wordings", row, wording)
        detail = shard.place("detail_wordings", row, wording * 1009 % 1)  # whatever the prompt is
        detail_ids = shard.rows("detail_id", detail).long()
        has_detail = len(detail_ids) > 0
        return Sample(
            latent=shard.parts["latents"][row].float(),
            prompt_ids=shard.rows("prompt_id", prompt).long(),
            prompt_states=shard.rows("prompt_state", prompt).float(),
            detail_ids=detail_ids if has_detail else None,
            detail_states=shard.rows("detail_state", detail).float() if has_detail else None,
            name=shard.names[row],
        )

    def buckets(self) -> dict[tuple[int, ...], list[tuple[int, range]]]:
        """The clips by the size of their latents ``(F,h,w)``: of each shard the number of its source, and which clips
        they are."""
        found: dict[tuple[int, ...], list[tuple[int, range]]] = {}
        for shard, first in zip(self._shards, self._starts, strict=False):
            size = open_safetensors(self.folder / shard.file).tensors["latents"].shape[2:]
            found.setdefault(tuple(size), []).append((shard.source, range(first, first + shard.clips)))
        return found

    def _opened(self, file: str) -> _OpenShard:
        if file not in self._open:
            self._open[file] = _OpenShard(self.folder / file, self.in_memory)
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # a process that it is sent to opens the files itself


class _OpenShard:
    """A shard's ``parts`` by name: tensors or, mapped, slices that read no more than is asked for."""

    def __init__(self, path: Path, in_memory: bool) -> None:
        file: Any = safe_open(path, "pt")
        self.names: list[str] = json.loads((file.metadata() or {}).get("names", "[]"))
        self.parts: dict[str, Any] = {}
        for name in list(file.keys()):
            # A copy: what get_tensor gives is mapped too.
            self.parts[name] = file.get_tensor(name).clone() if in_memory else file.get_slice(name)

    def place(self, wordings: str, clip: int, wording: float) -> int:
        """The place of one of a clip's prompts among all prompts, or of its detailed captions among these."""
        if wordings not in self.parts:
            return clip
        begin, end = self.parts[wordings][clip : clip + 2].tolist()
        return int(begin + int(wording * (end - begin)))

    def rows(self, name: str, clip: int) -> Tensor:
        """A clip's rows of what has a different number of them in each: one tensor and its offsets."""
        begin, end = self.parts[f"{name}_offsets"][clip : clip + 2].tolist()
        rows: Tensor = self.parts[f"{name}s"][begin:end]
        return rows


# The index


@dataclass(frozen=True)
class ShardEntry:
    """The index's entry of one shard file. ``content`` is a digest of what it was built from, as the file states it;
    ``same_as`` what that is today, where an earlier version of the pack built it and reckoned otherwise; ``source`` the
    number of the source that the clips are from."""

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
    same_as: str = ""
    source: int = 0

    def fault(self, folder: Path, thorough: bool) -> str:
        """What is wrong with the file, '' for nothing; only ``thorough`` reads all of it."""
        path = folder / self.file
        try:
            if (size := path.stat().st_size) != self.bytes:
                return f"has {size} bytes instead of {self.bytes}"
            if open_safetensors(path).metadata.get("content") != self.content:
                return "does not hold the clips that the index lists"  # a build was stopped between the two
            return "does not match its checksum" if thorough and sha256_of(path) != self.sha256 else ""
        except FileNotFoundError:
            return "is missing"
        except (UniViGUError, OSError) as error:
            return f"cannot be read ({error})"


@dataclass(frozen=True)
class Index:
    """``index.json``: fingerprints of source and encoders, clips of the source, and an entry for each file.
    ``former_source``: the fingerprint that an earlier version of the pack gave the source, where it was another."""

    source: str
    encoders: str
    items: int
    empty: ShardEntry
    shards: tuple[ShardEntry, ...]
    former_source: str = ""

    def fingerprints(self) -> tuple[str, ...]:
        """Of the data: today's, and the one that a run of an earlier version may have noted."""
        return tuple(digest([source, self.encoders]) for source in (self.source, self.former_source) if source)

    def write(self, folder: Path) -> None:
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(folder / INDEX, json.dumps(data, indent=1, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> Index | None:
        """None where there is none, none that is whole, or one of another version: the cache is to be built.

        Raises UniViGUError for an index of something else."""
        path = folder / INDEX
        try:
            data = json.loads(read_text(path, most=_LARGEST_INDEX))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):  # cut off, where shards lie beside it
            data = {"format": FORMAT} if any(folder.glob("uvg-shard-*.safetensors")) else None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UniViGUError(
                f"{path}: found an index of another kind; expected one of training shards, or no file. Choose another "
                "folder for the cache"
            )
        try:
            return TypeAdapter(cls).validate_python(data) if data.get("version") == VERSION else None
        except ValidationError:
            return None


def sha256_of(*paths: Path) -> str:
    """The checksum of one file, or of several one after the other, in hex."""
    result = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                result.update(block)
    return result.hexdigest()
