"""The one registration point of the nodes. A file whose packages are missing takes its own nodes away, not the pack."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io

log = logging.getLogger(__name__)

# What each file brings; ids are permanent.
NODES = {
    "loading": ("UniViGULoader", "UniViGULoraLoader", "UniViGUSave"),
    "prompt": ("UniViGUTextEncode", "UniViGUPromptList"),
    "latents": ("UniViGUEmptyLatent", "UniViGUSplitLatent"),
    "samplers": ("UniFlowSampler", "VideoToTextDenoise", "JointSampler"),
    "editing": ("UniViGUEdit",),
    "story": ("UniViGUStory",),
    "text": ("UniViGUTextDecoder", "UniViGURankCaptions", "UniViGURankClips", "UniViGUTrajectory"),
    "video": ("UniViGUEncodeVideo", "UniViGUCaptionFolder", "UniViGUSaveCaptionedVideo"),
    "film": ("UniViGUCaptionShots",),
    "finding": ("UniViGUFindClips",),
    "checking": ("UniViGUCheck",),
    "training": ("UniViGULoadClips", "UniViGUTrain"),
}


class UniViGUExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def on_load(self) -> None:
        from .comfy.model import register
        from .comfy.samples import offer_samples

        register()
        offer_samples()
        try:
            from .comfy.review import register as add_routes

            add_routes()
        except ImportError as error:  # as below: a package is missing
            log.warning("Uni-ViGU: without Review captions (%s)", error)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        found: list[type[io.ComfyNode]] = []
        for file, names in NODES.items():
            try:
                module = import_module(f".{file}", __package__)
            except ImportError as error:
                log.warning("Uni-ViGU: without %s (%s); pip install -r requirements.txt", ", ".join(names), error)
                continue
            found += [getattr(module, name) for name in names]
        return found
