"""Building the cache of training shards (see ``shards.py``).

A shard appears whole or not at all and enters the index with its checksum afterwards, so a build that is stopped at any
moment continues where it was, but for one shard.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import RunConfig
from ..errors import UniViGUError
from ..io import make_folder, written_whole
from ..locks import owned
from ..media.vae import latent_shape
from ..progress import Report
from .encoders import Encoders
from .left_out import LeftOut, tally
from .shards import EMPTY, FORMAT, INDEX, VERSION, Index, Sample, ShardEntry, Shards, sha256_of
from .sources import Source, Together, TrainingClip, digest, former_keys, group_of

log = logging.getLogger(__name__)

MOST_CLIPS, MOST_LATENT_BYTES = 512, 2**29  # of a shard: what a stopped build loses, and what building holds in memory
MOST_TOGETHER, PIXELS_TOGETHER = 16, 2**19  # that the VAE encodes at once: small clips are three times as fast so

FAILED = "could not be decoded"
NOT_FINITE = "with values outside float16's range"

_TEXTS_TOGETHER = 16
_NONE = torch.empty(0)  # in the place of pixels that were encoded


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
    in_memory: bool | None = False,
    progress: Report | None = None,
    say: Callable[[str], object] = log.warning,
) -> Shards:
    """Bring a cache folder up to date with a source and open it.

    The files that are there are checked first, by size, header and checksum. Only shards are built that are missing,
    damaged, or whose clips or encoders have changed; ``say`` gets a line on each of these, and on clips that could not
    be read. Files that the index does not name are never deleted.

    Args:
        folder: made if missing. per_shard: clips in a shard, see ``shard_clips``; another number builds all anew.
        in_memory: as for ``Shards``.
        progress: called with (what, done, total), in clips.

    Raises UniViGUError when another process builds in the folder, no clip can be read, the folder holds an
    ``index.json`` of something else, or the system refuses to write (full disk): the shards written before that stay.
    """
    folder = Path(folder)
    if not len(source):
        raise UniViGUError(f"{folder}: found no clips to encode; expected at least one")
    make_folder(folder, "choose another for the cache")
    try:
        with owned(folder, "a build of training data"):
            _Builder(source, encoders, folder, progress or (lambda *_: None), say).build(per_shard)
    finally:
        encoders.release()
    shards = Shards(folder, in_memory=in_memory)
    if shards.left_out:
        lost = f"{len(shards.left_out)} of {len(source)} clips could not be used and are left out"
        say("\n".join([f"{folder}: {lost} (to try them again, delete the folder)", *tally(shards.left_out)]))
    return shards


@dataclass(frozen=True)
class _Builder:
    source: Source
    encoders: Encoders
    folder: Path
    progress: Report
    say: Callable[[str], object]

    def build(self, per_shard: int) -> None:
        old, total = Index.read(self.folder), len(self.source)
        keys = [self.source.key(index) for index in range(total)]
        made_by = [VERSION, self.encoders.fingerprint]
        wanted, former = [ShardEntry(EMPTY, digest(made_by))], former_keys(self.source)
        for number, (first, end) in enumerate(self._cuts(per_shard)):
            own, before = (some[first:end] for some in (keys, former))
            file = f"uvg-shard-{number:05d}.safetensors"
            same_as = digest([*made_by, before]) if before else ""
            content = digest([*made_by, own])
            wanted.append(ShardEntry(file, content, first, len(own), same_as=same_as, source=self._number(first)))
        ready = self._unchanged(old, wanted)

        def index() -> Index:
            shards = tuple(ready[one.file] for one in wanted[1:] if one.file in ready)
            before = digest(former) if former else ""
            return Index(digest(keys), self.encoders.fingerprint, total, ready[EMPTY], shards, before)

        for entry in wanted:
            if entry.file not in ready:
                done = sum(shard.items for shard in ready.values())
                ready[entry.file] = self._empty(entry) if entry.file == EMPTY else self._shard(entry, done)
                index().write(self.folder)
        if index() != old:
            index().write(self.folder)
        self.progress("encoding the clips", total, total)
        outdated = {entry.file for entry in old.shards} - set(ready) if old else set()
        for path in self.folder.glob("uvg-shard-*.safetensors"):
            if path.name in outdated:
                path.unlink()
        if not any(shard.clips for shard in ready.values()):
            lost = [one for shard in ready.values() for one in shard.left_out]
            raise UniViGUError("\n".join([f"{self.folder}: none of {len(lost)} clips could be used", *tally(lost)]))

    def _cuts(self, per_shard: int) -> Iterator[tuple[int, int]]:
        """Where shards begin and end: each holds clips of one source and one size."""
        first = 0
        for _, group in groupby(range(len(self.source)), lambda index: group_of(self.source, index)):
            end = first + sum(1 for _ in group)
            yield from ((start, min(start + per_shard, end)) for start in range(first, end, per_shard))
            first = end

    def _number(self, index: int) -> int:
        return self.source.group(index)[0] if isinstance(self.source, Together) else 0

    def _unchanged(self, old: Index | None, wanted: Sequence[ShardEntry]) -> dict[str, ShardEntry]:
        """The entries of files that need not be built again, by file; says why others are."""
        if old is None or old.encoders != self.encoders.fingerprint:
            if old is not None:
                self.say(f"{self.folder}: built with other encoders or sizes; rebuilding all shards")
            elif (self.folder / INDEX).exists():
                self.say(f"{self.folder}: its index is damaged or has another version; rebuilding all shards")
            return {}
        there = {entry.file: entry for entry in (old.empty, *old.shards)}
        # One without clips is tried again: what kept all of them from being read may have passed.
        known = [want for want in wanted if want.file in there and (there[want.file].clips or not want.items)]
        same = [entry for want in known if (entry := _still(there[want.file], want))]
        ready, faults = {}, []
        for entry, done in zip(same, accumulate(entry.items for entry in same), strict=True):
            if fault := entry.fault(self.folder, thorough=True):
                faults.append(f"{entry.file} {fault}")
            else:
                ready[entry.file] = entry
            self.progress("checking the shards", done, len(self.source))
        if len(known) > len(same):
            changed = f"the clips or texts of {len(known) - len(same)} of {len(wanted) - 1} shards have changed"
            self.say(f"{self.folder}: {changed} since they were built; rebuilding these")
        if faults:
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            self.say(f"{self.folder}: {faults[0]}{more}; rebuilding")
        return ready

    def _empty(self, entry: ShardEntry) -> ShardEntry:
        """The empty prompt's ids and condition, ``ids`` [n] and ``states`` [r,E]."""
        states = self._states([""])[""]
        if not _finite(states):
            raise UniViGUError("the text encoder gives values that are not numbers; run it in bfloat16 or float32")
        return self._write(entry, {"ids": self._ids(""), "states": states}, [])

    def _shard(self, entry: ShardEntry, done: int) -> ShardEntry:
        """Encode the clips, then all their texts, and write what float16 holds. ``done``: clips before, for reports."""
        encoded: list[tuple[TrainingClip, Tensor]] = []
        left_out: list[LeftOut] = []
        clips = self._clips(entry, left_out)
        for first in clips:
            most = max(1, min(MOST_TOGETHER, PIXELS_TOGETHER // first.pixels[..., 0].numel()))
            group = [first, *islice(clips, most - 1)]
            latents = self.encoders.latent(torch.stack([clip.pixels for clip in group])).to("cpu", torch.float16)
            encoded += [(replace(clip, pixels=_NONE), row) for clip, row in zip(group, latents, strict=True)]
            self.progress("encoding the clips", done + len(encoded) + len(left_out), len(self.source))
        states = self._states([text for clip, _ in encoded for text in _texts(clip)])
        samples: list[Sample] = []
        others: list[tuple[_Texts, _Texts]] = []  # of each clip: further prompts, further detailed captions
        for clip, latent in encoded:
            prompt, detail = clip.prompt, clip.detail
            ids = None if detail is None else self._ids(detail)
            sample = Sample(latent, self._ids(prompt), states[prompt], ids, states.get(detail), clip.name)
            if _finite(latent, *(states[text] for text in _texts(clip))):
                samples.append(sample)
                prompts, details = (
                    [(self._ids(text), states[text]) for text in texts] for texts in (clip.others, clip.other_details)
                )
                others.append((prompts, details))
            else:
                left_out.append(LeftOut(clip.name, NOT_FINITE))
        prompt_ids = [one.prompt_ids for one in samples] + [ids for some, _ in others for ids, _ in some]
        first_details = [one.detail_ids for one in samples if one.detail_ids is not None]
        detail_ids = [*first_details, *(ids for _, some in others for ids, _ in some)]
        built = replace(
            entry,
            same_as="",
            clips=len(samples),
            details=len(first_details),
            longest_prompt=max(map(len, prompt_ids), default=0),
            longest_detail=max(map(len, detail_ids), default=0),
            left_out=tuple(left_out),
        )
        return self._write(built, _packed(samples, others) if samples else {}, [one.name for one in samples])

    def _clips(self, entry: ShardEntry, left_out: list[LeftOut]) -> Iterator[TrainingClip]:
        """The clips of a shard; those that cannot be read go to ``left_out``."""
        for index in range(entry.first, entry.first + entry.items):
            name = self.source.name(index)
            try:
                clip = self.source.item(index)
                for text in _texts(clip):
                    self.encoders.rows(text)  # raises for one that does not fit
            except UniViGUError as error:
                left_out.append(LeftOut(name, FAILED, str(error)))
            else:
                yield replace(clip, name=name)

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.encoders.tokens(text), dtype=torch.int32)

    def _states(self, texts: list[str]) -> dict[str | None, Tensor]:
        """Kept rows of the conditions, float16 ``[r,E]``, by text; clips often share one."""
        unique = list(dict.fromkeys(texts))
        found: dict[str | None, Tensor] = {}
        for start in range(0, len(unique), _TEXTS_TOGETHER):
            some = unique[start : start + _TEXTS_TOGETHER]
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


def _still(entry: ShardEntry, wanted: ShardEntry) -> ShardEntry | None:
    """The entry of a shard that need not be built again, None for one that must. ``wanted.same_as``: what an earlier
    version would have called it."""
    entry = replace(entry, first=wanted.first, source=wanted.source)
    if wanted.content in (entry.content, entry.same_as):
        return entry
    return replace(entry, same_as=wanted.content) if entry.content == wanted.same_as else None


def _texts(clip: TrainingClip) -> list[str]:
    return [text for text in (clip.prompt, *clip.others, clip.detail, *clip.other_details) if text is not None]


_Texts = list[tuple[Tensor, Tensor]]  # ids and conditions


def _packed(samples: list[Sample], others: list[tuple[_Texts, _Texts]]) -> dict[str, Tensor]:
    """The tensors of a shard; rows of different lengths become one tensor and its N+1 offsets."""
    tensors = {"latents": torch.stack([one.latent for one in samples])}
    prompts = [[(one.prompt_ids, one.prompt_states), *more] for one, (more, _) in zip(samples, others, strict=True)]
    details = [[_detail(one), *more] for one, (_, more) in zip(samples, others, strict=True)]
    for kind, wordings, texts in (("prompt", "wordings", prompts), ("detail", "detail_wordings", details)):
        if any(len(some) > 1 for some in texts):
            tensors[wordings] = torch.tensor([0, *accumulate(map(len, texts))], dtype=torch.int64)
        for name, part in ((f"{kind}_id", 0), (f"{kind}_state", 1)):
            rows = [one[part] for some in texts for one in some]
            tensors[f"{name}s"] = torch.cat(rows)
            tensors[f"{name}_offsets"] = torch.tensor([0, *accumulate(map(len, rows))], dtype=torch.int64)
    return tensors


def _detail(sample: Sample) -> tuple[Tensor, Tensor]:
    """Nothing for a clip without a detailed caption."""
    if sample.detail_ids is None or sample.detail_states is None:
        return sample.prompt_ids[:0], sample.prompt_states[:0]
    return sample.detail_ids, sample.detail_states


def _finite(*tensors: Tensor) -> bool:
    return all(bool(one.isfinite().all()) for one in tensors)
