"""``rank``: which text fits a clip best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError
from ..io import read_text
from ..media.video.footage import Footage
from ..progress import Bars
from ..sampling import Ranking, Size
from ..settings import Text, setting, settings
from .common import Model
from .flags import Only
from .output import say, show
from .streams import as_json, is_stream, write_json


@settings
class Rank:
    """What is ranked."""

    clip: Path = setting(
        "Video to rank texts for; - reads it from standard input.", positional=True, metavar="clip", stdin="file"
    )
    texts: tuple[Text, ...] = setting("Texts to rank.", default=(), positional=True, metavar="text")
    texts_file: Path | None = setting("Text file with one candidate per line.", default=None, stdin="file")

    json: Path | None = as_json("the ranking, the best text first,")

    def __post_init__(self) -> None:
        if not self.texts and self.texts_file is None:
            raise UniViGUError("no texts to rank; list them after the clip, or pass --texts-file FILE")

    def candidates(self) -> list[str]:
        """All texts. Raises UniViGUError where there is none, or the file cannot be read."""
        texts = list(self.texts)
        if self.texts_file:
            try:
                texts += [line.strip() for line in read_text(self.texts_file).splitlines() if line.strip()]
            except FileNotFoundError as error:
                raise UniViGUError(
                    f"{self.texts_file}: cannot be read ({error.strerror}); pass a text file with one candidate per "
                    "line"
                ) from None
        if not texts:
            raise UniViGUError(f"{self.texts_file}: the file contains no text; expected one candidate per line")
        return texts


def rank(
    own: Rank,
    model: Model,
    ranking: Annotated[Ranking, Only("samples", "seed", "stop_when_sure")],
    size: Size,
    footage: Footage,
    shown: Bars,
) -> None:
    """Rank texts by how well they describe a clip."""
    texts, pipe = own.candidates(), model.pipeline(shown)
    latent, note = pipe.latent_of(own.clip, size, footage)
    shown.close()
    say(note)
    scores = pipe.rank(latent, texts, ranking, callback=lambda done, total: shown("ranking", done, total))
    probability = scores.double().softmax(0)
    unit = pipe.score_unit
    best_first = scores.argsort(descending=True).tolist()
    for i in () if is_stream(own.json) else best_first:
        show(f"{probability[i]:7.1%}  {scores[i]:9.2f} {unit}  {texts[i]}")
    if own.json:
        found = [
            {"text": texts[i], "probability": float(probability[i]), "score": float(scores[i])} for i in best_first
        ]
        write_json(own.json, {"clip": str(own.clip), "unit": unit, "ranking": found})
