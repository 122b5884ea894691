"""The bridge to ComfyUI: what knows its internals is here and nowhere else.

``network``: our network, open to core's patches; ``model``: as one of ComfyUI's models, registered, so that core's own
loaders find it; ``sampling``: both streams inside ComfyUI's guider. ``training`` needs more packages than the rest.
"""
