"""How often the steps of a caption look at the clip anew (see ``model/kv_cache.py``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
from ..errors import UniViGUError
from ..model import VideoCache

POLICIES = ("auto", "off", "static", "refresh=K")


@dataclass(frozen=True)
class CachePolicy:
    """``refresh``: every how many steps the clip is looked at anew, 0 for once; ``reads_text``: whether it sees the
    text when it is; ``rounds``: whether it may be kept in float8 where that makes it fit the device. ``kept`` is False
    where every step looks at the clip: the exact run."""

    kept: bool
    refresh: int = 0
    reads_text: bool = False
    rounds: bool = False

    @classmethod
    def of(cls, text: str, config: ModelConfig) -> CachePolicy:
        """What a setting means for a checkpoint.

        ``off``: every step is a full pass, which is exact. ``refresh=K``: every K-th is, and the others run the text
        alone beside the keys and values of the last one (where the clip does not see the text, once is enough).
        ``static``: one pass in which the video does not see the text, and after it the text alone; exact for
        checkpoints with ``v2t_attention: one_way``, as long as float8 is not needed to keep it on the device. ``auto``:
        static where that is exact, and then never in float8, else off. Raises UniViGUError for anything else."""
        exact = config.v2t_attention == "one_way"
        if text in ("off", "static", "auto"):
            return cls(text == "static" or (text == "auto" and exact), rounds=text == "static")
        match = re.fullmatch(r"refresh=([1-9][0-9]{0,3})", text)
        if match is None:
            raise UniViGUError(
                f"video_cache is {text!r}; expected one of {', '.join(POLICIES)}, with a number of steps for K"
            )
        return cls(True, 0 if exact else int(match[1]), reads_text=not exact, rounds=True)

    @property
    def once(self) -> bool:
        """Whether the clip is looked at once, so that several runs may share a cache."""
        return self.kept and not self.refresh

    def cache(self, model: Any, shared: VideoCache | None = None) -> VideoCache | None:
        """The cache for a run of ``model``: the ``shared`` one where the clip is looked at once, else an empty one;
        None where the run needs none or the model can use none."""
        if shared is not None and self.once:
            return shared
        if not self.kept:
            return None
        cache: VideoCache | None = model.video_cache(reads_text=self.reads_text, fp8=None if self.rounds else False)
        return cache
