"""A source of clips as training data, surveyed: which clips can be used, which part of each, and why others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import RunConfig
from ..content import content_of
from ..errors import UniViGUError, counted
from ..media.video import ClipInfo, probe, read_clip
from ..progress import Report
from .clip_file import ClipFile, Texts
from .left_out import (
    DETAIL_LENGTH,
    EMPTY_CAPTION,
    NO_DETAIL,
    PROMPT_LENGTH,
    TOO_SHORT,
    UNREADABLE,
    LeftOut,
    Unusable,
    named,
    tally,
)
from .listing import listed, manifest_in, pictures_in, unread_shards
from .settings import Buckets, Data
from .sources import TrainingClip, digest
from .tags import wordings
from .windows import best_shape, is_long, kept_of, lengths_of, shapes_of, windows_of

_RATES = 5  # frame rates named in a report
_SAME_RATE = 0.01  # 29.97 and 30 count as one rate, and so do 23.976 and 24
_MUCH = 0.66  # the share of a picture that is left, below which a report tells of it

Tokens = Callable[[str], list[int]]


@dataclass(frozen=True)
class TextLimits:
    """How many tokens a prompt and a detailed caption may have: (fewest, most), both included.

    Counted as they lie in the text stream, with the end-of-text token: a text of ``most`` tokens fills a stream of that
    length. The defaults are the paper's, for a stream of 256. Raises UniViGUError for limits that nothing can meet.
    """

    prompt: tuple[int, int] = (0, 128)
    detail: tuple[int, int] = (128, 256)

    def __post_init__(self) -> None:
        for name, (fewest, most) in vars(self).items():
            if not 0 <= fewest <= most:
                raise UniViGUError(
                    f"token limits of the {name} are {fewest} to {most}; expected two whole numbers of 0 or more, the "
                    "smaller first"
                )

    @classmethod
    def of(cls, run: RunConfig) -> TextLimits:
        """The paper's limits where the text stream has room for them; on a shorter one, whatever fits."""
        most, paper = min(run.text_length, run.context_length), cls()
        return paper if most >= paper.detail[1] else cls((0, min(paper.prompt[1], most)), (0, most))

    def within(self, run: RunConfig) -> TextLimits:
        """These limits, cut to the lengths that the model reads. Raises UniViGUError where nothing is left."""
        longest = min(run.text_length, run.context_length)
        for name, (fewest, _) in (("prompts", self.prompt), ("detailed captions", self.detail)):
            if fewest > longest:
                found = f"{name} must have at least {fewest} tokens, but this model reads at most {longest}"
                raise UniViGUError(f"{found}; lower the limit")
        return TextLimits(*((fewest, min(most, longest)) for fewest, most in (self.prompt, self.detail)))


@dataclass(frozen=True)
class Survey:
    """What a source of clips holds: a ``Source`` of the parts that can be used. ``str()`` is the report: a line of
    counts, then one line per reason and per remark.

    usable         in the order of the source, those of one size together; a clip that is cut into windows has several
    clips          how many clips these are
    left_out       each with the first reason that holds
    unused_details  clips that are used without their detailed caption: it is outside the limits, and not needed
    fits           whether a prompt is within the limits
    """

    folder: Path
    run: RunConfig
    usable: list[ClipFile]
    left_out: list[LeftOut]
    unused_details: list[LeftOut]
    how: Data
    fits: Callable[[str], bool]
    counts: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.usable)

    @property
    def clips(self) -> int:
        return self.counts["clips"]

    def key(self, index: int) -> str:
        """Over what the file holds, its texts, and the size and rate that pixels are brought to: data that are moved,
        copied or touched stay the same."""
        return self._digest(index, self.usable[index].content)

    def former_key(self, index: int) -> str:
        """The key of versions up to 0.1.1, by name, size and time: what they built need not be built anew."""
        clip = self.usable[index]
        return self._digest(index, [clip.name, clip.size, clip.changed])

    def _digest(self, index: int, file: object) -> str:
        clip, run = self.usable[index], self.run
        facts = [file, clip.prompt, clip.detail, clip.spec.frames, clip.spec.height, clip.spec.width, run.fps]
        # What earlier versions did not know comes last, and only where it says something.
        part = [clip.start, clip.seconds, clip.spec.fps is None]
        facts += [part] if part != [0.0, None, False] else []
        look = [clip.spec.fit, clip.spec.crop, list(clip.spec.background)]
        facts += [{"look": look}] if look != ["crop", "center", [0, 0, 0]] else []
        more = self._wordings(clip)[1:]
        facts += [list(more)] if more or clip.other_details else []
        return digest([*facts, list(clip.other_details)] if clip.other_details else facts)

    def name(self, index: int) -> str:
        return self.usable[index].name

    def group(self, index: int) -> tuple[int, int, int]:
        """Frames, height and width: clips of one shard have the same."""
        spec = self.usable[index].spec
        return spec.frames, spec.height, spec.width

    def item(self, index: int) -> TrainingClip:
        """Decode one clip. Raises UniViGUError where it is damaged, or shorter than its header says."""
        file = self.usable[index]
        with file.opened() as path:
            clip = read_clip(path, file.spec, start=file.start, seconds=file.seconds)
        if clip.damage:
            raise UniViGUError(f"{file.path}: {clip.damage}. Copy or download it again")
        needed = file.start + (file.spec.frames - 1) / self.run.fps
        if file.spec.frames > 1 and needed > clip.info.duration - 1e-3:
            raise UniViGUError(
                f"{file.path}: the clip lasts {clip.info.duration:.2f} s, but its header says {file.duration:.2f} "
                f"s; expected {file.spec.frames} frames at {self.run.fps:g} fps. Copy or download it again"
            )
        prompts = self._wordings(file)
        return TrainingClip(clip.pixels, prompts[0], file.detail, file.name, prompts[1:], file.other_details)

    def _wordings(self, clip: ClipFile) -> tuple[str, ...]:
        """The prompts of a clip, one of which is taken each time."""
        prompts = (clip.prompt, *clip.others)
        if not (self.how.shuffle_tags or self.how.drop_tags):
            return prompts
        made = (text for prompt in prompts for text in wordings(prompt, self.how))
        return tuple(dict.fromkeys(filter(self.fits, made))) or prompts

    @property
    def retimed(self) -> str:
        """One line on clips whose rate is not the model's, e.g. ``12 of 40 clips are retimed from 24, 30 fps to 16
        fps``; empty where there are none."""
        fps = self.run.fps
        rates = sorted((key.removeprefix("fps ") for key in self.counts if key.startswith("fps ")), key=float)
        if not rates:
            return ""
        others = sum(self.counts[f"fps {rate}"] for rate in rates)
        more = f" and {len(rates) - _RATES} other rates" if len(rates) > _RATES else ""
        verb = "is" if others == 1 else "are"
        found = f"{', '.join(rates[:_RATES])}{more}"
        return f"{others} of {counted(self.clips, 'clip')} {verb} retimed from {found} fps to {fps:g} fps"

    @property
    def cut(self) -> str:
        """One line on clips that are longer than what is seen of them at once, and how their captions stay true."""
        long, seconds = self.counts["long"], self.run.frames / self.run.fps
        if not long:
            return ""
        which = f"{long} of {counted(self.clips, 'clip')} longer than {seconds:.3g} s"
        if any(clip.spec.frames < self.run.frames for clip in self.usable):
            which = f"{long} of {counted(self.clips, 'clip')} longer than the frames that are used"
        if self.how.windows == "first":
            return f"{which}: only their beginning is used, although captions may describe more"
        if self.how.windows == "all":
            return f"{which}: cut into {self.counts['windows']} windows, each with the caption of its clip"
        faster = max(self._span(clip) * self.run.fps / clip.spec.frames for clip in self.usable)
        return f"{which}: their frames are spread over all that the caption covers, up to {faster:.2f} times as fast"

    @property
    def reshaped(self) -> str:
        """One line on clips of which much is cropped away, or bars, or that are stretched a lot."""
        much = [clip for clip in self.usable if clip.kept < _MUCH]
        if not much:
            return ""
        worst = min(much, key=lambda clip: clip.kept)
        found, share = {
            "crop": ("lose more than a third of the picture to cropping", f"{worst.kept:.0%} kept"),
            "pad": ("get bars over more than a third of the picture", f"{1 - worst.kept:.0%} bars"),
            "stretch": ("are stretched by more than half", f"{1 / worst.kept:.1f} times"),
        }[self.how.fit]
        return (
            f"{len(much)} of {counted(len(self.usable), 'clip')} {found} (worst: {worst.name}, {share}); set "
            "buckets.shapes to train them at sizes closer to their own"
        )

    @property
    def doubled(self) -> str:
        """One line on clips with two captions, of which one is read."""
        clips = {clip.place: clip.path.relative_to(self.folder).as_posix() for clip in self.usable if clip.passed_over}
        if not clips:
            return ""
        names = named(list(clips.values()))
        return f"{counted(len(clips), 'clip')} with both a .txt and a .caption, of which the .txt is used: {names}"

    def _span(self, clip: ClipFile) -> float:
        """Seconds of a clip that its frames are spread over; 0 where they are taken at the model's rate."""
        if clip.spec.fps is not None:
            return 0.0
        return clip.described

    def __str__(self) -> str:
        total = self.clips + len(self.left_out)
        lines = [f"{self.folder}: {counted(total, 'clip')}, {self.clips} usable, {len(self.left_out)} left out"]
        lines += tally(self.left_out)
        lines += filter(None, (self.retimed, self.cut, self.reshaped, self.doubled))
        if unread := self.counts["unread"]:
            lines.append(f"pictures not read because buckets.frames does not contain 1: {unread}")
        if shards := self.counts["shards"]:
            lines.append(f"{counted(shards, '.tar shard')} not read; name them as another source to use them")
        if self.unused_details:
            lines += ["used without their detailed captions:", *tally(self.unused_details)]
        return "\n".join(lines)


def survey(
    source: str | Path | Data,
    run: RunConfig,
    tokens: Tokens,
    *,
    limits: TextLimits | None = None,
    need_detail: bool = False,
    recursive: bool = True,
    buckets: Buckets | None = None,
    progress: Report | None = None,
) -> Survey:
    """Which clips of a source can be trained on, and why the others cannot.

    Args:
        source: a folder, a manifest or shards; ``Data`` says what is done with them, too.
        run: the model's frames and rate (a clip must last that long), and how many tokens it reads.
        tokens: a text's ids with the end-of-text token, e.g. the checkpoint's ``Tokenizer.ids``.
        limits: None is ``TextLimits.of(run)``. Whatever they say, no text may exceed the model's own lengths.
        need_detail: leave out clips without a detailed caption (the second stage). Otherwise one that is there is
            used if it is within the limits.
        buckets: sizes beside the model's own.

    In a folder, each clip's text file is the one that ``text_files`` gives; the detailed caption's name is the prompt's
    with ``.detail.txt`` (see ``texts_beside``). Raises UniViGUError when the source is missing, holds no clips, or none
    that is usable.
    """
    how = source if isinstance(source, Data) else Data(str(source))
    run = replace(run, fps=how.fps or run.fps)
    report, root = progress or (lambda *_: None), Path(how.path)
    look = _Look(run, how, buckets or Buckets(), tokens, (limits or TextLimits.of(run)).within(run), need_detail)
    found = Survey(root, run, [], [], [], how, look.fits)
    clips = listed(root, recursive=recursive, pictures=1 in look.lengths)
    number = 0
    for number, one in enumerate(clips, 1):
        report("surveying the clips", number - 1, number)  # how many there are, nobody knows yet
        if isinstance(one, LeftOut):
            found.left_out.append(one)
            continue
        try:
            look.add(found, *one)
        except Unusable as why:
            found.left_out.append(LeftOut(one[0].name, *why.args))
        except Exception as error:  # one bad clip must not cost the others
            known = isinstance(error, UniViGUError | OSError)
            words = getattr(error, "strerror", None) or str(error)
            found.left_out.append(
                LeftOut(one[0].name, UNREADABLE, words if known else f"{type(error).__name__}: {words}")
            )
    report("surveying the clips", number, number)
    if not found.usable:
        texts = "its prompt and its detailed caption" if need_detail else "its prompt"
        expected = f"clips of at least {look.shortest} frames at {run.fps:g} fps, each with {texts}"
        lines = [f"{root}: none of {counted(number, 'clip')} can be trained on; expected {expected}"]
        lines[0] += manifest_in(root) + (". Left out were" if found.left_out else "")
        raise UniViGUError("\n".join(lines + tally(found.left_out)))
    if buckets is not None and 1 not in look.lengths and root.is_dir():
        found.counts["unread"] = len(pictures_in(root, recursive))
    if root.is_dir():
        found.counts["shards"] = unread_shards(root, read=found.usable[0].member is not None)
    found.usable.sort(key=lambda clip: (clip.spec.frames, clip.spec.height, clip.spec.width))
    return found


@dataclass
class _Look:
    """How clips are looked at, one after the other."""

    run: RunConfig
    how: Data
    buckets: Buckets
    tokens: Tokens
    limits: TextLimits
    need_detail: bool

    def __post_init__(self) -> None:
        self.lengths = lengths_of(self.run, self.buckets)
        self.shapes = shapes_of(self.run, self.buckets)
        self._probed: tuple[tuple[str, object], ClipInfo] | None = None  # rows of one clip follow each other

    @property
    def shortest(self) -> int:
        return next((length for length in self.lengths if length > 1), self.run.frames)

    def fits(self, prompt: str) -> bool:
        return self.limits.prompt[0] <= len(self.tokens(prompt)) <= self.limits.prompt[1]

    def add(self, found: Survey, file: ClipFile, texts: Texts) -> None:
        """Add what is used of a clip to a survey. Raises Unusable, and UniViGUError for a clip that cannot be read."""
        prompts = self._worded(texts(True), self.limits.prompt, (EMPTY_CAPTION, PROMPT_LENGTH))
        details: tuple[str, ...] = ()
        try:
            details = self._worded(texts(False), self.limits.detail, (NO_DETAIL, DETAIL_LENGTH))
        except Unusable as why:
            if self.need_detail:
                raise
            if why.args[0] != NO_DETAIL:
                found.unused_details.append(LeftOut(file.name, *why.args))
        info, file = self._info(file), self._cut(file)
        frames, parts = self._parts(file, info)
        height, width = best_shape(info, self.shapes)
        stat = file.path.stat()
        content = content_of(file.path)
        file = replace(
            file,
            prompt=prompts[0],
            others=prompts[1:],
            detail=details[0] if details else None,
            other_details=details[1:],
            content=content if file.member is None else f"{content} {file.member[0]}",
            size=stat.st_size if file.member is None else file.member[1],
            changed=stat.st_mtime_ns,
            fps=info.fps,
            duration=info.duration,
            kept=kept_of(info, (height, width)),
        )
        for start, seconds, spread in parts:
            spec = replace(self.how.footage.spec(frames, height, width), fps=None if spread else self.run.fps)
            name = file.name if len(parts) == 1 else f"{file.name} from {start:.2f} s"
            found.usable.append(replace(file, name=name, start=start, seconds=seconds, spec=spec))
        self._count(found, file, frames, len(parts))

    def _worded(self, texts: tuple[str, ...], limits: tuple[int, int], reasons: tuple[str, str]) -> tuple[str, ...]:
        """The texts within the limits, with what is put around them. ``reasons``: for one that is empty, and one of
        another length."""
        given = [text.strip() for text in texts]
        if not any(given):
            raise Unusable(reasons[0])
        made = [self.how.prefix + text + self.how.suffix for text in given if text]
        lengths = [len(self.tokens(text)) for text in made]
        kept = tuple(text for text, length in zip(made, lengths, strict=True) if limits[0] <= length <= limits[1])
        if not kept:
            raise Unusable(f"{reasons[1]} ({limits[0]}-{limits[1]})", counted(lengths[0], "token"))
        return kept

    def _info(self, file: ClipFile) -> ClipInfo:
        key = (file.place, file.member)
        if self._probed is None or self._probed[0] != key:
            with file.opened() as path:
                self._probed = key, probe(path)
        return self._probed[1]

    def _cut(self, file: ClipFile) -> ClipFile:
        """What is left of a clip, or of the part that a manifest names, without what is left out of every clip."""
        how = self.how
        if (how.start, how.seconds) == (0.0, None):
            return file
        start = max(file.start, how.start)
        parts = ((file.start, file.seconds), (how.start, how.seconds))
        ends = [begin + length for begin, length in parts if length is not None]
        return replace(file, start=start, seconds=min(ends) - start if ends else None)

    def _parts(self, file: ClipFile, info: ClipInfo) -> tuple[int, list[tuple[float, float | None, bool]]]:
        if file.is_picture and info.frames == 1:
            if 1 not in self.lengths:
                raise Unusable("a picture; buckets.frames has no 1")
            return 1, [(0.0, None, False)]
        return windows_of(info, (file.start, file.seconds), self.run, self.how, self.lengths)

    def _count(self, found: Survey, file: ClipFile, frames: int, windows: int) -> None:
        counts = found.counts
        counts["clips"] += 1
        if frames == 1:
            counts["pictures"] += 1
            return
        if abs(file.fps / self.run.fps - 1) > _SAME_RATE:
            counts[f"fps {file.fps:.4g}"] += 1
        if is_long(file.described, frames, self.run.fps):
            counts["long"] += 1
            counts["windows"] += windows


def too_short(name: str, info: ClipInfo, run: RunConfig) -> LeftOut | None:
    """Why a clip is left out that ends before the last of the model's frames; None for one that is long enough."""
    if (run.frames - 1) / run.fps <= info.duration - 1e-3:
        return None
    return LeftOut(name, f"{TOO_SHORT} for {run.frames} frames at {run.fps:g} fps", f"{info.duration:.2f} s")
