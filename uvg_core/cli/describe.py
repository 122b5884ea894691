"""``describe``: real footage gets captions by a language model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from ..data.folder import TextLimits
from ..errors import UniViGUError, WrongUsage
from ..media.video.footage import FOOTAGE, Footage
from ..pipeline.component_files import Places
from ..pipeline.components import Components
from ..pipeline.folders import CAPTIONS, Captions, caption_folder
from ..pipeline.pipeline import given
from ..progress import Bars
from ..sampling import Size
from ..sampling.settings import RELEASED, SIZE
from ..synthesis.captioner import make_captioner
from ..synthesis.chat import require_usable
from ..synthesis.describe import INSTRUCTIONS, Describe, Describer, Stopped, describe_windows, estimated_tokens
from ..synthesis.settings import Chat
from .flags import Only
from .output import CANCELLED, complain, say, show

_FILES = ("overwrite", "prefix", "suffix", "existing", "replace", "format", "backup", "review")


def describe(
    own: Describe,
    captions: Annotated[Captions, Only(*_FILES)],
    chat: Chat,
    size: Annotated[Size, Only("height", "width")],
    footage: Footage,
    shown: Bars,
) -> int:
    """Write captions of real clips with a language model that sees frames of the whole clip."""
    require_usable(chat)
    if chat.endpoint is None:
        raise WrongUsage("describe needs a language model: pass --endpoint URL and --llm MODEL")
    if own.window is not None:
        _require_windows(own, captions, footage, chat.frames_shown)
    is_fitted = size != SIZE or (footage.fit, footage.crop) != (FOOTAGE.fit, FOOTAGE.crop)
    if is_fitted and own.model is None and None in (size.height, size.width):
        raise WrongUsage(
            "--fit and --crop fit frames to a size; pass --height and --width, or --model to use that checkpoint's size"
        )
    captions = Captions(**{**vars(captions), "file_suffix": "detail" if own.kind == "detail" else ""})
    count, usual, run = estimated_tokens, TextLimits(), RELEASED
    if own.model is not None:
        parts = Components(own.model, Places(wan=own.wan), device="cpu", progress=shown)
        run = parts.config.run
        count, usual = (lambda text: len(parts.tokenizer.ids(text))), TextLimits.of(run)
    fewest, most = getattr(usual, own.kind)
    most = given(chat.max_tokens, most)
    limits = given(chat.min_tokens, min(max(1, fewest), most)), most
    failed = 0

    def note(text: str) -> None:
        shown.close()
        say(text)

    for path in own.clips:
        folder = path if os.path.isdir(path) else path.parent
        captioner = make_captioner(chat, folder, count, limits, note, INSTRUCTIONS[own.kind])
        assert captioner is not None
        describer = Describer(captioner, own.kind, footage, size.resolved(run)[1:] if is_fitted else None)
        try:
            failed += _one(path, describer, own, captions, note)
        except Stopped as why:
            complain(why)
            say(f"{describer.done} captions were written and are kept. Run the same command again to continue")
            return 1
        except UniViGUError as error:
            complain(error)
            failed += 1
        except KeyboardInterrupt:
            say("stopped; captions written so far are kept. Run the same command again to continue")
            return CANCELLED
        finally:
            captioner.client.close()
    return 1 if failed else 0


def _require_windows(own: Describe, captions: Captions, footage: Footage, frames_shown: int) -> None:
    """Raises WrongUsage for what would be passed over where windows are described."""
    for path in own.clips:
        if not os.path.isdir(path):
            raise WrongUsage(f"{path}: --window writes a manifest into a folder of clips; pass the folder")
    for name in _FILES:
        if getattr(captions, name) != getattr(CAPTIONS, name):
            raise WrongUsage(
                f"--{name} does not apply to --window, which adds what is missing to windows.jsonl; omit one of the two"
            )
    if own.window is not None and footage.fps is not None and frames_shown / footage.fps < own.window:
        raise WrongUsage(
            f"{frames_shown} frames at {footage.fps:g} fps show {frames_shown / footage.fps:.3g} s of each window of "
            f"{own.window:g} s; raise --frames-shown, or leave --fps out"
        )


def _one(path: Path, describer: Describer, own: Describe, captions: Captions, note: object) -> int:
    """Describe a clip or a folder; how many clips failed."""
    if not os.path.isdir(path):
        show(captions.worded(describer(path)))
        return 0
    if own.window is not None:
        windows = describe_windows(path, describer, own.window, recursive=not own.no_recursive, note=say)
        show(str(windows))
        return len(windows.failed) + len(windows.others)
    report = caption_folder(
        path,
        describer,
        captions,
        recursive=not own.no_recursive,
        on_clip=lambda _, __, clip, how_far: say(f"{how_far}: {clip}"),
    )
    show(str(report))
    return len(report.failed)
