"""The cache that training reads: latents, prompt conditions and tokens, computed once and kept in safetensors shards.

A cache folder holds ``index.json``, ``uvg-empty.safetensors`` (the empty prompt, which replaces dropped conditions) and
``uvg-shard-00000.safetensors`` and so on. A shard appears whole or not at all and enters the index with its checksum
afterwards, so a build that is stopped at any moment goes on where it was, but for one shard.

In a shard, with N clips, n a clip's tokens and r the rows of its condition:

    latents               float16 [N,16,F,h,w], in the checkpoint's latent space
    prompt_ids            int32 [sum of n], clip i's from prompt_id_offsets[i] to [i+1]; with the end-of-text token
    prompt_states         float16 [sum of r, E], clip i's from prompt_state_offsets[i] to [i+1]
    detail_*              the same for detailed captions; a clip without one has no ids

Float16, not bfloat16: latents and states lie within about -30..30, where float16 resolves eight times as finely, and
finer than bfloat16 weights compute them. Values that do not fit are noticed and their clip is left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..checkpoint.read import SafetensorsFile, Stored, bytes_of, open_weights
from ..checkpoint.write import Pending, write_safetensors
from ..config import RunConfig
from ..errors import UniViGUError
from ..io import write_text
from ..media.text import TextEncoder
from ..media.vae import latent_shape, to_latent_space
from ..pipeline.components import LARGE_BYTES, Components
from ..progress import Report
from .folder import LeftOut, tally
from .sources import Source, digest, fingerprint

log = logging.getLogger(__name__)

FORMAT, VERSION = "uni-vigu shards", 1
INDEX, EMPTY = "index.json", "uvg-empty.safetensors"
MOST_CLIPS, MOST_LATENT_BYTES = 512, 2**29  # of a shard: what a stopped build loses, and what building holds in memory

FAILED = "not readable after all"
NOT_FINITE = "with values that float16 does not hold"

_TEXT_BATCH = 16
_BATCH_PIXELS = 2**19  # encoded together up to about so many, small clips are three times as fast
_MOST_BATCH = 16
_SAMPLED = 16  # of a large part, every so many-th large tensor is read for the fingerprint
_SMALL_TENSOR, _HUGE_TENSOR = 2**22, 2**28


# -------------------------------------------------------------------------------------------------------- encoders


@dataclass(frozen=True)
class Encoders:
    """What turns clips and texts into what training reads.

    latent       uint8 ``[B,T,H,W,3]`` -> latents ``[B,16,F,h,w]`` in the checkpoint's latent space
    states       B texts -> prompt conditions ``[B,S,E]``
    tokens       text -> ids with the end-of-text token
    rows         text -> how many rows of its condition are kept: those beyond are zeros
    fingerprint  changes when any of them would give something else
    release      lets go of what they hold on the device; called when building ends

    Each may raise UniViGUError for a text that does not fit: that clip is left out.
    """

    latent: Callable[[Tensor], Tensor]
    states: Callable[[list[str]], Tensor]
    tokens: Callable[[str], list[int]]
    rows: Callable[[str], int]
    fingerprint: str
    release: Callable[[], object] = field(default=lambda: None)

    @classmethod
    def from_parts(cls, parts: Components) -> Encoders:
        """A checkpoint's VAE, text encoder and tokenizer. One part at a time is on the device, until another is
        needed or ``release`` is called. Hashes the weights: some seconds where they are large."""
        held = _Held(parts)
        tokenizer, space, text_states = parts.tokenizer, parts.config.model.latent_space, parts.text_states

        @torch.no_grad()
        def latent(pixels_BTHWC: Tensor) -> Tensor:
            latent_shape(*pixels_BTHWC.shape[1:4])
            vae: Any = held.part("vae")
            weight = next(vae.parameters())
            video = pixels_BTHWC.permute(0, 4, 1, 2, 3).to(weight.device).float() / 127.5 - 1
            return to_latent_space(vae.encode(video.to(weight.dtype)).latent_dist.mode().float(), space)

        @torch.no_grad()
        def states(texts: list[str]) -> Tensor:
            return TextEncoder(held.part("encoder"), tokenizer, text_states)(texts).float()

        def rows(text: str) -> int:
            real = int(tokenizer.context([text])[1].sum())
            # The release's own code leaves the states of padding in place: there, padding says something too.
            return real if text_states == "umT5" else parts.config.run.context_length

        return cls(latent, states, tokenizer.ids, rows, fingerprint_of(parts), held.release)


class _Held:
    """Keeps the part that is at work on the device between calls."""

    def __init__(self, parts: Components) -> None:
        self._parts, self._stack = parts, ExitStack()
        self._name = ""
        self._module: nn.Module | None = None

    def part(self, name: str) -> nn.Module:
        if self._module is None or name != self._name:
            self.release()
            self._module, self._name = self._stack.enter_context(self._parts.using(name)), name
        return self._module

    def release(self) -> None:
        self._module = None
        self._stack.close()


def fingerprint_of(parts: Components) -> str:
    """Over VAE and text encoder weights, tokenizer, latent space, kind of text states, and the sizes of a run.

    Parts up to 1 GiB are read whole. Of a larger one: names, shapes and types of all tensors, and the contents of the
    small ones (norms, biases) and of every sixteenth other; training on it would have changed those too."""
    run = parts.config.run
    sizes = [run.frames, run.height, run.width, run.fps, run.context_length, run.pad_token, run.eos_token]
    facts: list[Any] = [parts.config.model.latent_space, parts.text_states, sizes]
    facts.append(hashlib.sha256(parts.tokenizer.proto).hexdigest())
    for source in (parts.files.vae, parts.files.encoder):
        facts.append(_weights_digest(source.path, source.prefix))
    return digest(facts)


def _weights_digest(path: Path, prefix: str) -> str:
    weights = open_weights(path)
    stored = {name: weights.tensors[name] for name in sorted(weights.tensors) if name.startswith(prefix)}
    large = sum(one.nbytes for one in stored.values()) > LARGE_BYTES
    result = hashlib.sha256()
    for number, (name, one) in enumerate(stored.items()):
        result.update(f"{name.removeprefix(prefix)} {one.dtype} {list(one.shape)}\n".encode())
        sampled = number % _SAMPLED == 0 and one.nbytes <= _HUGE_TENSOR
        if not large or one.nbytes <= _SMALL_TENSOR or sampled:
            tensor = weights.read(name)
            result.update(bytes_of(tensor))
    return result.hexdigest()


# -------------------------------------------------------------------------------------------------------- building


def shard_clips(run: RunConfig) -> int:
    """How many clips of a model's size make a good shard: 512 small ones, about a hundred of 81 frames at 480p."""
    _, channels, frames, rows, columns = latent_shape(run.frames, run.height, run.width)
    return max(1, min(MOST_CLIPS, MOST_LATENT_BYTES // (2 * channels * frames * rows * columns)))


def build_shards(
    source: Source,
    encoders: Encoders,
    folder: str | Path,
    *,
    per_shard: int = MOST_CLIPS,
    batch: int | None = None,
    in_memory: bool = False,
    progress: Report | None = None,
    say: Callable[[str], object] = log.warning,
) -> Shards:
    """Bring a cache folder up to date with a source and open it.

    What is there is checked first, by size, header and checksum. Built are only shards that are missing, damaged, or
    whose clips or encoders have changed; which of these it was, ``say`` is told in one line, and also how many clips
    could not be read. Files that the index does not name are never deleted.

    Args:
        folder: made if missing. per_shard: clips in a shard, see ``shard_clips``; another number builds all anew.
        batch: clips that the VAE encodes together; None goes by their size. It does not change what is stored.
        in_memory: as for ``Shards``.
        progress: called with (what, done, total), in clips.

    One process at a time may build in a folder. Raises UniViGUError when no clip can be read, the folder holds an
    ``index.json`` of something else, or the system refuses to write (full disk): the shards written before that stay.
    """
    if per_shard < 1 or (batch is not None and batch < 1):
        raise UniViGUError(f"shards of {per_shard} clips, encoded {batch} at a time; expected at least 1 of each")
    if not len(source):
        raise UniViGUError(f"{folder}: there are no clips to build shards of; expected at least one")
    build = _Build(source, encoders, Path(folder), per_shard, batch, progress, say)
    try:
        build.run()
    finally:
        encoders.release()
    shards = Shards(folder, in_memory=in_memory)
    if shards.left_out:
        say(
            "\n".join(
                [
                    f"{folder}: {len(shards.left_out)} of {len(source)} clips could not be used and are left out "
                    "(delete the folder to try them again)",
                    *tally(shards.left_out),
                ]
            )
        )
    return shards


@dataclass(frozen=True)
class _Entry:
    """What the index says of one shard file; ``content`` is a digest of what it was built from."""

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

    def to_json(self) -> dict[str, Any]:
        left_out = [[one.name, one.reason, one.found] for one in self.left_out]
        return {**vars(self), "left_out": left_out}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> _Entry:
        return cls(**{**data, "left_out": tuple(LeftOut(*one) for one in data["left_out"])})

    def fault(self, folder: Path, thorough: bool) -> str:
        """What is wrong with the file, '' for nothing; only ``thorough`` reads all of it."""
        path = folder / self.file
        if not path.is_file():
            return "is missing"
        try:
            size = path.stat().st_size
            if size != self.bytes:
                return f"has {size} bytes instead of {self.bytes}"
            if SafetensorsFile(path).metadata.get("content") != self.content:
                return "holds other clips than the index says"  # a build was stopped between the two
            return "does not match its checksum" if thorough and _sha256(path) != self.sha256 else ""
        except UniViGUError:
            return "has a damaged header"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"


@dataclass(frozen=True)
class _Index:
    source: str
    encoders: str
    items: int
    empty: _Entry
    shards: tuple[_Entry, ...]

    def write(self, folder: Path) -> None:
        data = {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "encoders": self.encoders,
            "items": self.items,
            "empty": self.empty.to_json(),
            "shards": [entry.to_json() for entry in self.shards],
        }
        write_text(folder / INDEX, json.dumps(data, indent=1, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> _Index | None:
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
            shards = tuple(_Entry.from_json(entry) for entry in data["shards"])
            return cls(data["source"], data["encoders"], data["items"], _Entry.from_json(data["empty"]), shards)
        except (KeyError, TypeError):
            return None


@dataclass(frozen=True)
class _Read:
    """A clip on its way to the VAE: its texts are prompt and detailed caption."""

    name: str
    texts: tuple[str, str | None]
    pixels: Tensor


@dataclass(frozen=True)
class _Encoded:
    """A clip behind the VAE; ``latent`` is float16 ``[16,F,h,w]``."""

    name: str
    texts: tuple[str, str | None]
    latent: Tensor


class _Build:
    """One run of ``build_shards``."""

    def __init__(
        self,
        source: Source,
        encoders: Encoders,
        folder: Path,
        per_shard: int,
        batch: int | None,
        progress: Report | None,
        say: Callable[[str], object],
    ) -> None:
        self.source, self.encoders, self.folder = source, encoders, folder
        self.batch, self.progress, self.say = batch, progress, say
        self.spans = [range(a, min(a + per_shard, len(source))) for a in range(0, len(source), per_shard)]
        self.done = 0

    def run(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UniViGUError(
                f"{self.folder}: cannot be made a folder ({error.strerror or error}); choose another for the cache"
            ) from None
        old = _Index.read(self.folder)
        wanted = [
            _Entry(
                f"uvg-shard-{number:05d}.safetensors",
                digest([VERSION, self.encoders.fingerprint, [self.source.key(index) for index in span]]),
                first=span[0],
                items=len(span),
            )
            for number, span in enumerate(self.spans)
        ]
        kept = self._kept(old, wanted)
        index = _Index(
            fingerprint(self.source),
            self.encoders.fingerprint,
            len(self.source),
            kept.get(EMPTY) or self._build_empty(),
            tuple(kept[entry.file] for entry in wanted if entry.file in kept),
        )
        self.done = sum(entry.items for entry in index.shards)
        for entry, span in zip(wanted, self.spans, strict=True):
            if entry.file not in kept:
                kept[entry.file] = self._build_shard(entry, span)
                index = replace(index, shards=tuple(kept[one.file] for one in wanted if one.file in kept))
                index.write(self.folder)
        if old != index:
            index.write(self.folder)
        self._report("encoding the clips", len(self.source))
        for entry in old.shards if old else ():
            if entry.file not in kept and re.fullmatch(r"uvg-shard-[0-9]+\.safetensors", entry.file):
                (self.folder / entry.file).unlink(missing_ok=True)
        if not any(entry.clips for entry in index.shards):
            lost = [one for entry in index.shards for one in entry.left_out]
            raise UniViGUError("\n".join([f"{self.folder}: none of {len(lost)} clips could be used", *tally(lost)]))

    def _kept(self, old: _Index | None, wanted: Sequence[_Entry]) -> dict[str, _Entry]:
        """Entries that stay as they are, by file; says what does not stay."""
        if old is None:
            if (self.folder / INDEX).exists():
                self.say(f"{self.folder}: its index is damaged or of another version; all shards are built anew")
            return {}
        if old.encoders != self.encoders.fingerprint:
            self.say(f"{self.folder}: built with other encoders or sizes; all shards are built anew")
            return {}
        kept: dict[str, _Entry] = {}
        empty = digest([VERSION, self.encoders.fingerprint])
        there = {entry.file: entry for entry in old.shards}
        changed, faults, checked = 0, [], 0
        for want in [_Entry(EMPTY, empty), *wanted]:
            have = old.empty if want.file == EMPTY else there.get(want.file)
            # One without clips is tried again: what kept all of them from being read may have passed.
            if have is None or (want.items and not have.clips):
                continue
            if have.content != want.content:
                changed += 1
                continue
            fault = have.fault(self.folder, thorough=True)
            if fault:
                faults.append(f"{have.file} {fault}")
            else:
                kept[have.file] = have
            checked += want.items
            self._report("checking the shards", checked)
        if changed:
            self.say(
                f"{self.folder}: the clips or texts of {changed} of {len(wanted)} shards have changed since they "
                "were built; these are built anew"
            )
        if faults:
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            self.say(f"{self.folder}: {faults[0]}{more}; built anew")
        return kept

    def _report(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(what, done, len(self.source))

    def _build_empty(self) -> _Entry:
        """The empty prompt's ids and condition, ``ids`` [n] and ``states`` [r,E]."""
        states = self.encoders.states([""])[0, : self.encoders.rows("")].to("cpu", torch.float16)
        tensors = {"ids": torch.tensor(self.encoders.tokens(""), dtype=torch.int32), "states": states}
        if not _finite(states):
            raise UniViGUError("the text encoder gives values that are not numbers; run it in bfloat16 or float32")
        return self._write(_Entry(EMPTY, digest([VERSION, self.encoders.fingerprint])), tensors, [])

    def _build_shard(self, entry: _Entry, span: range) -> _Entry:
        clips: list[_Encoded] = []
        left_out: list[LeftOut] = []
        for group in self._groups(span, left_out):
            latents = self.encoders.latent(torch.stack([clip.pixels for clip in group])).to("cpu", torch.float16)
            clips += [_Encoded(one.name, one.texts, latent) for one, latent in zip(group, latents, strict=True)]
            self._report("encoding the clips", self.done + len(clips) + len(left_out))
        self.done += len(span)
        states = self._states([text for clip in clips for text in clip.texts if text is not None])
        good = []
        for clip in clips:
            if _finite(clip.latent, *(states[text] for text in clip.texts if text is not None)):
                good.append(clip)
            else:
                left_out.append(LeftOut(clip.name, NOT_FINITE))
        tensors: dict[str, Tensor] = {}
        if good:
            tensors["latents"] = torch.stack([clip.latent for clip in good])
        none = torch.zeros(0, next((one.shape[1] for one in states.values()), 0), dtype=torch.float16)
        for which, name in enumerate(("prompt", "detail")):
            texts = [clip.texts[which] for clip in good]
            ids = [[] if text is None else self.encoders.tokens(text) for text in texts]
            tensors |= _ragged(f"{name}_id", [torch.tensor(one, dtype=torch.int32) for one in ids])
            tensors |= _ragged(f"{name}_state", [none if text is None else states[text] for text in texts])
        built = replace(
            entry,
            clips=len(good),
            details=sum(clip.texts[1] is not None for clip in good),
            longest_prompt=_longest(tensors["prompt_id_offsets"]),
            longest_detail=_longest(tensors["detail_id_offsets"]),
            left_out=tuple(left_out),
        )
        return self._write(built, tensors, [clip.name for clip in good])

    def _groups(self, span: range, left_out: list[LeftOut]) -> Iterator[list[_Read]]:
        """Clips to encode together; those that cannot be read go to ``left_out``."""
        group: list[_Read] = []
        shape: torch.Size | None = None
        for index in span:
            name = self.source.name(index)
            try:
                item = self.source.item(index)
                for text in (item.prompt, item.detail):
                    if text is not None:
                        self.encoders.rows(text)  # raises for one that does not fit
            except UniViGUError as error:
                left_out.append(LeftOut(name, FAILED, str(error)))
                continue
            shape = shape or item.pixels.shape
            if item.pixels.shape != shape:
                raise UniViGUError(
                    f"{name}: found a clip of shape {list(item.pixels.shape)} after one of {list(shape)}; expected one "
                    "size throughout"
                )
            group.append(_Read(name, (item.prompt, item.detail), item.pixels))
            frames, height, width, _ = item.pixels.shape
            if len(group) >= (self.batch or max(1, min(_MOST_BATCH, _BATCH_PIXELS // (frames * height * width)))):
                yield group
                group = []
        if group:
            yield group

    def _states(self, texts: list[str]) -> dict[str, Tensor]:
        """Kept rows of the conditions, float16 ``[r,E]``, by text; clips often share one."""
        unique = list(dict.fromkeys(texts))
        found: dict[str, Tensor] = {}
        for start in range(0, len(unique), _TEXT_BATCH):
            some = unique[start : start + _TEXT_BATCH]
            states = self.encoders.states(some).to("cpu", torch.float16)
            # Copies: a view would keep the padding of the whole batch alive.
            found |= {text: one[: self.encoders.rows(text)].clone() for text, one in zip(some, states, strict=True)}
        return found

    def _write(self, entry: _Entry, tensors: dict[str, Tensor], names: list[str]) -> _Entry:
        path = self.folder / entry.file
        pending = {
            name: Pending(Stored.like(one.shape, one.dtype), partial(_same, one)) for name, one in tensors.items()
        }
        facts = {"format": FORMAT, "version": str(VERSION), "content": entry.content, "names": json.dumps(names)}
        write_safetensors(path, pending, facts)
        return replace(entry, bytes=path.stat().st_size, sha256=_sha256(path))


def _ragged(name: str, rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows of different lengths as one tensor and its N+1 offsets."""
    offsets = [0, *accumulate(len(row) for row in rows)]
    joined = {f"{name}s": torch.cat(rows)} if rows else {}
    return {**joined, f"{name}_offsets": torch.tensor(offsets, dtype=torch.int64)}


def _longest(offsets: Tensor) -> int:
    return int(offsets.diff().max()) if len(offsets) > 1 else 0


def _finite(*tensors: Tensor) -> bool:
    return all(bool(one.isfinite().all()) for one in tensors)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _sha256(path: Path) -> str:
    result = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            result.update(block)
    return result.hexdigest()


# --------------------------------------------------------------------------------------------------------- reading


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
        index = _Index.read(self.folder)
        if index is None or index.items != sum(entry.items for entry in index.shards):
            found = "no whole index" if index is None else f"{sum(entry.items for entry in index.shards)} clips of "
            found += "" if index is None else f"{index.items}"
            raise UniViGUError(
                f"{self.folder}: not a whole cache of training shards (found {found}); build it, or let the building "
                "go on where it was stopped"
            )
        for entry in (index.empty, *index.shards):
            fault = entry.fault(self.folder, thorough=False)
            if fault:
                raise UniViGUError(f"{self.folder / entry.file}: the shard {fault}; build the cache again to mend it")
        self._entries = tuple(entry for entry in index.shards if entry.clips)
        self._starts = [0, *accumulate(entry.clips for entry in self._entries)]
        self._open: dict[str, _Opened] = {}
        self._process = os.getpid()
        self.fingerprint = digest([index.source, index.encoders])
        self.left_out = tuple(one for entry in index.shards for one in entry.left_out)
        self.details = sum(entry.details for entry in self._entries)
        self.longest_prompt = max((entry.longest_prompt for entry in self._entries), default=0)
        self.longest_detail = max((entry.longest_detail for entry in self._entries), default=0)
        empty = _Opened(self.folder / EMPTY, in_memory=True)
        self.empty_ids: Tensor = empty.tensor("ids").long()
        self.empty_states: Tensor = empty.tensor("states").float()
        if in_memory:
            for entry in self._entries:
                self._opened(entry.file)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        shard, row = self._opened(self._entries[number].file), index - self._starts[number]
        detail_ids = shard.ragged("detail_id", row).long()
        has_detail = len(detail_ids) > 0
        return Sample(
            latent=shard.slices("latents")[row].float(),
            prompt_ids=shard.ragged("prompt_id", row).long(),
            prompt_states=shard.ragged("prompt_state", row).float(),
            detail_ids=detail_ids if has_detail else None,
            detail_states=shard.ragged("detail_state", row).float() if has_detail else None,
            name=shard.names[row],
        )

    def _opened(self, file: str) -> _Opened:
        if self._process != os.getpid() and not self.in_memory:  # forked: what is mapped belongs to the parent
            self._open, self._process = {}, os.getpid()
        if file not in self._open:
            self._open[file] = _Opened(self.folder / file, self.in_memory)
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}


class _Opened:
    """A shard that is mapped or, ``in_memory``, read."""

    def __init__(self, path: Path, in_memory: bool) -> None:
        self._file: Any = safe_open(path, "pt")
        self.names: list[str] = json.loads((self._file.metadata() or {}).get("names", "[]"))
        self._read: dict[str, Any] = {}
        if in_memory:
            self._read = {name: self.tensor(name).clone() for name in self._file.keys()}  # noqa: SIM118
            self._file = None

    def tensor(self, name: str) -> Tensor:
        return self._read[name] if name in self._read else self._file.get_tensor(name)

    def slices(self, name: str) -> Any:
        """Something that gives tensors by index and slice, reading no more than is asked for."""
        return self._read[name] if name in self._read else self._file.get_slice(name)

    def ragged(self, name: str, row: int) -> Tensor:
        """Row ``row`` of what ``_ragged`` joined."""
        begin, end = self.slices(f"{name}_offsets")[row : row + 2].tolist()
        return self.slices(f"{name}s")[begin:end]
