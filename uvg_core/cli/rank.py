"""``rank``: which text fits a clip best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..errors import UniViGUError
from ..io import read_text
from ..progress import Bars
from ..sampling import Ranking, Size
from ..settings import Text, setting, settings
from .common import Model
from .flags import Only
from .output import say, show


@settings
class Rank:
    """What is ranked."""

    clip: Path = setting("The video.", positional=True, metavar="clip")
    texts: tuple[Text, ...] = setting("Candidates.", default=(), positional=True, metavar="text")
    texts_file: Path | None = setting("A text file with one candidate a line.", default=None)

    def candidates(self) -> list[str]:
        """All texts. Raises UniViGUError where there is none, or the file cannot be read."""
        texts = list(self.texts)
        if self.texts_file:
            try:
                texts += [line.strip() for line in read_text(self.texts_file).splitlines() if line.strip()]
            except FileNotFoundError as error:
                raise UniViGUError(
                    f"{self.texts_file}: cannot be read ({error.strerror}); pass a text file with one candidate a line"
                ) from None
        if not texts:
            raise UniViGUError("there is no text to rank; write candidates after the clip, or pass --texts-file FILE")
        return texts


def rank(
    own: Rank,
    model: Model,
    ranking: Annotated[Ranking, Only("samples", "seed")],
    size: Size,
    shown: Bars,
) -> None:
    """Rank texts by how well they describe a clip."""
    texts, pipe = own.candidates(), model.pipeline(shown)
    latent, note = pipe.latent_of(own.clip, size)
    shown.close()
    say(note)
    scores = pipe.rank(latent, texts, ranking, callback=lambda done, total: shown("ranking", done, total))
    probability = scores.double().softmax(0)
    unit = "nats" if pipe.config.model.text_flow == "discrete" else "squared error"
    for i in scores.argsort(descending=True).tolist():
        show(f"{probability[i]:7.1%}  {scores[i]:9.2f} {unit}  {texts[i]}")
