"""Building the cache of training shards (see ``shards.py``).

A shard appears whole or not at all and enters the index with its checksum afterwards, so a build that is stopped at any
moment continues where it was, but for one shard.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import RunConfig
from ..errors import UniViGUError
from ..io import make_folder, written_whole
from ..media.vae import latent_shape
from ..progress import Report
from .encoders import Encoders
from .folder import LeftOut, tally
from .shards import EMPTY, FORMAT, INDEX, VERSION, Index, Sample, ShardEntry, Shards, sha256_of
from .sources import Source, TrainingClip, digest, fingerprint

log = logging.getLogger(__name__)

MOST_CLIPS, MOST_LATENT_BYTES = 512, 2**29  # of a shard: what a stopped build loses, and what building holds in memory

FAILED = "not readable after all"
NOT_FINITE = "with values that float16 does not hold"

_TEXT_BATCH = 16
_BATCH_PIXELS = 2**19  # encoded together up to about so many, small clips are three times as fast
_MOST_BATCH = 16


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

    The files that are there are checked first, by size, header and checksum. Only shards are built that are missing,
    damaged, or whose clips or encoders have changed; ``say`` gets a line on each of these, and on clips that could not
    be read. Files that the index does not name are never deleted.

    Args:
        folder: made if missing. per_shard: clips in a shard, see ``shard_clips``; another number builds all anew.
        batch: clips that the VAE encodes together; None goes by their size. It does not change what is stored.
        in_memory: as for ``Shards``.
        progress: called with (what, done, total), in clips.

    One process at a time may build in a folder. Raises UniViGUError when no clip can be read, the folder holds an
    ``index.json`` of something else, or the system refuses to write (full disk): the shards written before that stay.
    """
    folder = Path(folder)
    if per_shard < 1 or (batch is not None and batch < 1):
        raise UniViGUError(f"shards of {per_shard} clips, encoded {batch} at a time; expected at least 1 of each")
    if not len(source):
        raise UniViGUError(f"{folder}: there are no clips to build shards of; expected at least one")
    make_folder(folder, "choose another for the cache")
    try:
        _Builder(source, encoders, folder, batch, progress, say).build(per_shard)
    finally:
        encoders.release()
    shards = Shards(folder, in_memory=in_memory)
    if shards.left_out:
        lost = f"{len(shards.left_out)} of {len(source)} clips could not be used and are left out"
        say("\n".join([f"{folder}: {lost} (delete the folder to try them again)", *tally(shards.left_out)]))
    return shards


@dataclass(frozen=True)
class _Builder:
    source: Source
    encoders: Encoders
    folder: Path
    batch: int | None
    progress: Report | None
    say: Callable[[str], object]

    def build(self, per_shard: int) -> None:
        old, total = Index.read(self.folder), len(self.source)
        spans = [range(start, min(start + per_shard, total)) for start in range(0, total, per_shard)]
        wanted = [
            ShardEntry(
                f"uvg-shard-{number:05d}.safetensors",
                self._content([self.source.key(index) for index in span]),
                first=span[0],
                items=len(span),
            )
            for number, span in enumerate(spans)
        ]
        kept = self._kept(old, wanted)
        empty = kept.get(EMPTY) or self._build_empty()
        index = Index(fingerprint(self.source), self.encoders.fingerprint, total, empty, ())

        def with_shards() -> Index:
            return replace(index, shards=tuple(kept[one.file] for one in wanted if one.file in kept))

        done = sum(shard.items for shard in with_shards().shards)
        for entry in wanted:
            if entry.file not in kept:
                kept[entry.file] = self._build_shard(entry, done)
                done += entry.items
                with_shards().write(self.folder)
        index = with_shards()
        if old != index:
            index.write(self.folder)
        self._report("encoding the clips", total)
        for entry in old.shards if old else ():
            if entry.file not in kept and re.fullmatch(r"uvg-shard-[0-9]+\.safetensors", entry.file):
                (self.folder / entry.file).unlink(missing_ok=True)
        if not any(shard.clips for shard in index.shards):
            lost = [one for shard in index.shards for one in shard.left_out]
            raise UniViGUError("\n".join([f"{self.folder}: none of {len(lost)} clips could be used", *tally(lost)]))

    def _content(self, keys: list[str] | None = None) -> str:
        """Digest of what a file is built from; without clips, of the empty prompt's."""
        return digest([VERSION, self.encoders.fingerprint, *([] if keys is None else [keys])])

    def _report(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(what, done, len(self.source))

    def _kept(self, old: Index | None, wanted: Sequence[ShardEntry]) -> dict[str, ShardEntry]:
        """Entries that stay as they are, by file; reports what is built again."""
        if old is None:
            if (self.folder / INDEX).exists():
                self.say(f"{self.folder}: its index is damaged or of another version; all shards are built anew")
            return {}
        if old.encoders != self.encoders.fingerprint:
            self.say(f"{self.folder}: built with other encoders or sizes; all shards are built anew")
            return {}
        kept: dict[str, ShardEntry] = {}
        there = {entry.file: entry for entry in (old.empty, *old.shards)}
        changed, faults, checked = 0, [], 0
        for want in (ShardEntry(EMPTY, self._content()), *wanted):
            have = there.get(want.file)
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

    def _build_empty(self) -> ShardEntry:
        """The empty prompt's ids and condition, ``ids`` [n] and ``states`` [r,E]."""
        states = self._states([""])[""]
        if not _finite(states):
            raise UniViGUError("the text encoder gives values that are not numbers; run it in bfloat16 or float32")
        return self._write(ShardEntry(EMPTY, self._content()), {"ids": self._ids(""), "states": states}, [])

    def _build_shard(self, entry: ShardEntry, done: int) -> ShardEntry:
        """Encode the clips, then all their texts, and write what float16 holds. ``done``: clips before, for reports."""
        names: list[str] = []
        texts: list[tuple[str, str | None]] = []
        latents: list[Tensor] = []
        left_out: list[LeftOut] = []
        for group in self._groups(range(entry.first, entry.first + entry.items), left_out):
            latents += self.encoders.latent(torch.stack([clip.pixels for clip in group])).to("cpu", torch.float16)
            names += [clip.name for clip in group]
            texts += [(clip.prompt, clip.detail) for clip in group]
            self._report("encoding the clips", done + len(latents) + len(left_out))
        states = self._states([text for both in texts for text in both if text is not None])
        samples = []
        for name, latent, (prompt, detail) in zip(names, latents, texts, strict=True):
            if _finite(latent, states[prompt], *([] if detail is None else [states[detail]])):
                detail_ids = None if detail is None else self._ids(detail)
                detail_states = None if detail is None else states[detail]
                samples.append(Sample(latent, self._ids(prompt), states[prompt], detail_ids, detail_states, name))
            else:
                left_out.append(LeftOut(name, NOT_FINITE))
        tensors = _packed(samples)
        built = replace(
            entry,
            clips=len(samples),
            details=sum(one.detail_ids is not None for one in samples),
            longest_prompt=max((len(one.prompt_ids) for one in samples), default=0),
            longest_detail=max((len(one.detail_ids) for one in samples if one.detail_ids is not None), default=0),
            left_out=tuple(left_out),
        )
        return self._write(built, tensors, [one.name for one in samples])

    def _groups(self, span: range, left_out: list[LeftOut]) -> Iterator[list[TrainingClip]]:
        """Clips to encode together; those that cannot be read go to ``left_out``."""
        group: list[TrainingClip] = []
        shape: torch.Size | None = None
        for index in span:
            name = self.source.name(index)
            try:
                clip = self.source.item(index)
                for text in (clip.prompt, clip.detail):
                    if text is not None:
                        self.encoders.rows(text)  # raises for one that does not fit
            except UniViGUError as error:
                left_out.append(LeftOut(name, FAILED, str(error)))
                continue
            shape = shape or clip.pixels.shape
            if clip.pixels.shape != shape:
                raise UniViGUError(
                    f"{name}: found a clip of shape {list(clip.pixels.shape)} after one of {list(shape)}; expected one "
                    "size throughout"
                )
            group.append(replace(clip, name=name))
            if len(group) >= (self.batch or max(1, min(_MOST_BATCH, _BATCH_PIXELS // shape[:3].numel()))):
                yield group
                group = []
        if group:
            yield group

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.encoders.tokens(text), dtype=torch.int32)

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

    def _write(self, entry: ShardEntry, tensors: dict[str, Tensor], names: list[str]) -> ShardEntry:
        path = self.folder / entry.file
        facts = {"format": FORMAT, "version": str(VERSION), "content": entry.content, "names": json.dumps(names)}
        with written_whole(path) as temporary:
            save_file(tensors, temporary, facts)
        return replace(entry, bytes=path.stat().st_size, sha256=sha256_of(path))


def _packed(samples: list[Sample]) -> dict[str, Tensor]:
    """The tensors of a shard; rows of different lengths become one tensor and its N+1 offsets."""
    tensors = {"latents": torch.stack([one.latent for one in samples])} if samples else {}
    for name in ("prompt_id", "prompt_state", "detail_id", "detail_state"):
        like = name.replace("detail", "prompt")  # of a clip without a detailed caption, no rows of this kind
        rows = [getattr(one, f"{name}s") for one in samples]
        rows = [getattr(one, f"{like}s")[:0] if row is None else row for one, row in zip(samples, rows, strict=True)]
        tensors |= {f"{name}s": torch.cat(rows)} if rows else {}
        tensors[f"{name}_offsets"] = torch.tensor([0, *accumulate(map(len, rows))], dtype=torch.int64)
    return tensors


def _finite(*tensors: Tensor) -> bool:
    return all(bool(one.isfinite().all()) for one in tensors)
