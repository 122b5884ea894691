"""How the captions of a folder are worded."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Annotated

from ..confined import is_plain
from ..errors import UniViGUError
from ..io import MEGABYTE
from ..settings import Flag, OneOf, Text, setting, settings, shown

FORMATS = ("txt", "json", "jsonl", "csv")
EXISTING = ("keep", "append", "prepend")
_MOST_PAIRS = 1000
_NO_SPACES = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff])")  # scripts without
_SIGNS = ".,;:!?\"'()[]"
_AROUND = (-3, -2, -1, 1, 2, 3)  # places of the words among which a word stands

# What becomes of a caption: given the one that is there, None where none is, gives the new one, None to leave it.
Change = Callable[[str | None], str | None]


@settings
class Captions:
    """How a folder is captioned, and what is written."""

    overwrite: Flag = setting(
        "Replace existing captions. If off, clips that already have one are skipped.", default=False
    )
    prefix: Text = setting('Text to put before every caption, e.g. "mystyle, ".', default="")
    template: Text = setting("Text with blanks (___) to fill in. Leave empty for free-form captions.", default="")
    suffix: Text = setting('Text to put after every caption, e.g. ", 35 mm film".', default="")
    existing: Annotated[str, OneOf(*EXISTING)] = setting(
        "What to do with an existing caption: keep it, or add the new one after it (append) or before it (prepend). "
        "Each is added only once.",
        default="keep",
    )
    replace: Text = setting(
        "Words to replace in new captions, as plain text: one pair 'old => new' per line.", default=""
    )
    format: Annotated[str, OneOf(*FORMATS)] = setting(
        "Write a txt or json file beside each clip, or one metadata.jsonl or metadata.csv for the folder.",
        default="txt",
    )
    file_suffix: Text = setting(
        "Word to add to the file names; for example, caption gives clip.caption.txt.", default=""
    )
    hint: Text = setting("A prompt to give the model along with the clip.", default="")
    backup: Flag = setting("Keep the previous caption as clip.txt.bak when it is replaced or extended.", default=False)
    clip_seeds: Flag = setting(
        "Give each clip its own seed, derived from seed and the clip's name, so that it does not depend on the other "
        "clips in the folder.",
        default=False,
    )
    only: Text = setting("Caption only these clips, by their names in the folder, one per line.", default="")
    review: Flag = setting(
        "Save new captions to captions.review.jsonl, where they wait until you accept them with Review captions in "
        "ComfyUI.",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.overwrite and self.existing != "keep":
            raise UniViGUError(
                f"overwrite is on and existing is {self.existing}; turn overwrite off to keep what is there, or set "
                "existing to keep to replace it"
            )
        name = self.file_suffix
        if (
            len(name) > 64
            or not is_plain(f"a.{name}.txt")
            or re.search(r'[\\/<>:"|?*]', name)
            or name != name.strip(".")
        ):
            raise UniViGUError(
                f"file_suffix is {shown(name)}; expected a word that can be part of a file name, such as caption"
            )
        pairs_of(self.replace)

    def worded(self, caption: str) -> str:
        """A caption of the model as it is written."""
        return self.prefix + replaced(caption, pairs_of(self.replace)) + self.suffix

    @property
    def asked(self) -> str:
        """What is appended or prepended once, empty where nothing is: other words or another question are another
        matter."""
        if self.existing == "keep":
            return ""
        return hash_of(json.dumps([self.existing, self.prefix, self.suffix, self.template, self.hint]))

    def seed(self, seed: int, name: Path) -> int:
        """The seed of a clip, by its name in the folder."""
        if not self.clip_seeds:
            return seed
        data = f"{seed} {name.as_posix()}".encode(errors="surrogateescape")
        return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 1

    def change(self, new: str) -> Change:
        """What the new caption makes of the one that is there."""

        def changed(old: str | None) -> str | None:
            if self.overwrite or not (old or "").strip():
                return new
            if self.existing == "keep":
                return None
            return joined(old or "", new) if self.existing == "append" else joined(new, old or "")

        return changed


# Words


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Find and replace: the pairs of a text with ``old => new`` on each line; empty lines do not count."""
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        old, arrow, new = line.partition("=>")
        if not line.strip():
            continue
        if not (arrow and old.strip()):
            raise UniViGUError(
                f"replace: line {number} is {shown(line)}; expected the words to find, => and their replacement, "
                "such as 'colour => color'"
            )
        pairs.append((old.strip(), new.strip()))
    if len(pairs) > _MOST_PAIRS:
        raise UniViGUError(f"replace: found {len(pairs)} lines; expected at most {_MOST_PAIRS}")
    return pairs


def replaced(text: str, pairs: list[tuple[str, str]]) -> str:
    """A text with each pair replaced, one after the other, everywhere, as plain text; letter case counts."""
    for old, new in pairs:
        if len(text) + text.count(old) * (len(new) - len(old)) > MEGABYTE:  # pairs that double what the ones before did
            raise UniViGUError(
                "replace: the caption grows beyond a million characters; check the list for pairs that repeat words"
            )
        text = text.replace(old, new)
    return text


def joined(first: str, second: str) -> str:
    """Two texts with a space between, unless one of them brings its own, or the second begins as a sentence goes on."""
    first = first.rstrip("\r\n")
    is_apart = not first or first[-1].isspace() or not second or second[0].isspace() or second[0] in ",.;:!?"
    return f"{first}{'' if is_apart else ' '}{second}"


def hash_of(words: str | None) -> str:
    """What tells captions apart, in records."""
    return blake2b((words or "").encode(errors="surrogateescape"), digest_size=16).hexdigest()


# Changed words


def changes_of(texts: Sequence[str]) -> dict[str, str]:
    """New words by old ones, in lower case, of several ``old=new``. Raises UniViGUError for what is no change."""
    found: dict[str, str] = {}
    for text in texts:
        old, sign, new = (" ".join(part.split()) for part in text.partition("="))
        if not (sign and old):
            raise UniViGUError(f"change is {shown(text)}; expected old words, = and new words, such as red=blue")
        if old == new:
            raise UniViGUError(f"change is {shown(text)}, which changes nothing; expected other words after =")
        if found.setdefault(old.lower(), new) != new:
            raise UniViGUError(f"change names {shown(old)} twice, with different new words; leave one of them out")
    return found


def reworded(caption: str, changes: Mapping[str, str]) -> str:
    """A caption with words or phrases changed wherever they occur, all at once: what one change puts in, no other one
    takes. A capital at the beginning stays one; without new words the old ones are left out.

    Raises UniViGUError for words that do not occur, and where nothing is left or changed."""
    longest_first = sorted(changes, key=len, reverse=True)
    words = ("|".join(r"\s+".join(map(re.escape, old.split())) for old in longest_first)).join(("(", ")"))
    left = set(changes)

    def change(match: re.Match[str]) -> str:
        old = " ".join(match[0].lower().split())
        left.discard(old)
        new = changes[old]
        return new[:1].upper() + new[1:] if match[0][0].isupper() else new

    text = re.sub(rf"(?<!\w){words}(?!\w)", change, caption, flags=re.IGNORECASE) if changes else caption
    if left:
        missing = next(old for old in changes if old in left)
        raise UniViGUError(
            f"change: {shown(missing)} does not occur in the caption; expected words of it, whole. The caption is: "
            f"{caption}"
        )
    if "" in changes.values():
        text = re.sub(r"\s+(?=[\s.,;:!?]|$)", "", text).strip()
    if not text:
        raise UniViGUError("change: no word of the caption is left; expected new words after =")
    if text == caption:
        raise UniViGUError(f"the change leaves the caption as it is; expected other words. The caption is: {caption}")
    return text


def adapted(caption: str, query: str) -> str:
    """A caption that says what a query says, and what the query leaves open as before: in the caption's order, with as
    few words changed as that takes. A query that shares no word with it stays as it is."""
    old, new = caption.split(), query.split()
    keys, asked = ([word.casefold().strip(_SIGNS) for word in words] for words in (old, new))
    fits, places = _fits(asked, keys), dict[int, int]()
    if not fits:
        return query
    for at, there in sorted(fits, key=lambda pair: (-fits[pair], abs(pair[0] - pair[1]))):
        if at not in places and there not in places.values():
            places[at] = there
    words, last = [[""], *([word] for word in old)], 0
    for at, word in enumerate(new):
        if at not in places:
            words[last].append(word)  # after the word that it follows
            continue
        last = places[at] + 1
        if keys[last - 1] != asked[at]:
            words[last][0] = word
    return " ".join(word for some in words for word in some if word)


def _fits(asked: Sequence[str], known: Sequence[str]) -> dict[tuple[int, int], float]:
    """How well words of two texts correspond, by their places: those that are the same, and those that stand among the
    same words, rare ones above all. The weights were chosen on sentences of ``recipes/worlds``."""
    often, fits = Counter(known) | Counter(asked), defaultdict[tuple[int, int], float](float)
    for at, key in enumerate(asked):
        for there in (place for place, other in enumerate(known) if other == key):
            fits[at, there] += 2
            for away, off in product(_AROUND, _AROUND):
                if 0 <= at + away < len(asked) and 0 <= there + off < len(known):
                    fits[at + away, there + off] += 1 / (often[key] * abs(away) * (1 + abs(away - off)))
    return fits


# Words to look for


def words_of(query: str) -> list[str]:
    """The words of a query, each once. Raises UniViGUError where there is none."""
    kept = (sign if sign.isalnum() or unicodedata.category(sign)[0] == "M" else " " for sign in plain(query))
    words = list(dict.fromkeys("".join(kept).split()))
    if not words:
        raise UniViGUError(f"the query is {query!r}; expected words that say what the clip shows")
    return words


def plain(text: str) -> str:
    """A text as its words are compared: letters composed, and where a script has no spaces, each character a word."""
    return _NO_SPACES.sub(r" \1 ", unicodedata.normalize("NFKC", text)).casefold()
