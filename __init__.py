"""Uni-ViGU for ComfyUI. ComfyUI calls ``comfy_entrypoint``; plain Python imports ``uvg_core`` and not this file."""

WEB_DIRECTORY = "web"


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    """The extension; imported here and not above, so that this package imports where ComfyUI is absent."""
    from .nodes import UniViGUExtension

    return UniViGUExtension()
