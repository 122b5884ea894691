"""The routes behind the panel that reviews captions (``web/review.js``): what waits, its clips, and decisions.

A folder is named as in the node and opened in the same way; only clips of it are sent, only captions that were proposed
for them are written.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from ...uvg_core.errors import UniViGUError
from ...uvg_core.io import MEGABYTE
from ...uvg_core.media.video import ClipSpec, probe, read_clip
from ...uvg_core.pipeline.review import clip_named, decide, decisions_of, listed
from .paths import opened_folder, shown

log = logging.getLogger(__name__)

ROUTE = "/uni_vigu/review"
MOST_BODY = 8 * MEGABYTE
FRAME = 256  # pixels of the longer side
AT_ONCE = 2  # clips that are decoded at the same time
# What browsers play; whatever else is in such a file, a browser takes it for a video.
KINDS = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".mkv": "video/webm",
    ".gif": "image/gif",
}  # fmt: skip
GUARD = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox", "Cache-Control": "no-store"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_decoding = asyncio.Semaphore(AT_ONCE)


def register() -> None:
    """Add the routes to ComfyUI's server, where there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(ROUTE)(waiting)
        server.routes.post(ROUTE)(decisions)
        server.routes.get(f"{ROUTE}/clip")(clip)
        server.routes.get(f"{ROUTE}/frame")(frame)


def route(handler: Handler) -> Handler:
    """Refuse other sites, and answer errors in words."""

    @wraps(handler)
    async def answered(request: web.Request) -> web.StreamResponse:
        if not is_same_origin(request.headers):
            return web.json_response({"error": "this page may not ask for captions"}, status=403, headers=GUARD)
        try:
            return await handler(request)
        except UniViGUError as error:
            return web.json_response({"error": shown(str(error))}, status=400, headers=GUARD)
        except OSError as error:  # such as a disk that went away
            log.warning("Uni-ViGU: %s", error)
            words = f"the folder cannot be read or written ({error.strerror or type(error).__name__})"
            return web.json_response({"error": shown(words)}, status=400, headers=GUARD)

    return answered


@route
async def waiting(request: web.Request) -> web.StreamResponse:
    """What there is to review."""
    return web.json_response(await asyncio.to_thread(_waiting, *_folder_of(request.query)), headers=GUARD)


@route
async def decisions(request: web.Request) -> web.StreamResponse:
    """Decisions about some captions; what became of each."""
    if request.content_type != "application/json":
        raise UniViGUError("expected the content type application/json")
    values = await _body(request)
    found = await asyncio.to_thread(_decide, *_folder_of(values), values.get("decisions"))
    return web.json_response({"items": found}, headers=GUARD)


@route
async def clip(request: web.Request) -> web.StreamResponse:
    """A clip as it is."""
    path = await asyncio.to_thread(_clip, *_folder_of(request.query), request.query.get("clip", ""))
    kind = KINDS.get(path.suffix.lower(), "application/octet-stream")
    return web.FileResponse(path, headers={**GUARD, "Content-Type": kind})


@route
async def frame(request: web.Request) -> web.StreamResponse:
    """The first frame of a clip, small."""
    async with _decoding:
        data = await asyncio.to_thread(_frame, *_folder_of(request.query), request.query.get("clip", ""))
    headers = {**GUARD, "Content-Type": "image/jpeg", "Cache-Control": "private, max-age=60"}
    return web.Response(body=data, headers=headers)


def is_same_origin(headers: Any) -> bool:
    """Whether a request comes from a page of this server, or from no page. Browsers say so themselves, but not over
    plain http from another machine; there the page's address is compared."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("Origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("Host", "").lower()


async def _body(request: web.Request) -> dict[str, Any]:
    data = bytearray()
    async for block in request.content.iter_any():
        data += block
        if len(data) > MOST_BODY:
            raise UniViGUError(f"the request is larger than {MOST_BODY // MEGABYTE} MB; send fewer captions at once")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UniViGUError("expected a JSON object with folder and decisions")
    return values


def _folder_of(values: Any) -> tuple[str, bool]:
    """The folder that a request names, and whether its subfolders count."""
    folder = values.get("folder", "")
    if not isinstance(folder, str) or not folder.strip():
        raise UniViGUError("the folder is empty; write the path of a folder with clips")
    return folder.strip().strip('"'), values.get("subfolders", True) not in (False, "false", "0")


# In threads: disks and decoders take their time.


def _waiting(folder: str, recursive: bool) -> dict[str, Any]:
    with opened_folder(folder) as path:
        found = listed(path, recursive=recursive)
    for item in found["items"]:
        item |= {name: shown(item[name]) for name in ("problem", "failed")}
    return found


def _decide(folder: str, recursive: bool, values: Any) -> list[dict[str, str]]:
    with opened_folder(folder) as path:
        outcomes = decide(path, decisions_of(values), recursive=recursive)
    return [{**one, "problem": shown(one["problem"])} for one in outcomes]


def _clip(folder: str, _: bool, name: str) -> Path:
    with opened_folder(folder) as path:
        return clip_named(path, name).resolve()


def _frame(folder: str, _: bool, name: str) -> bytes:
    from PIL import Image

    with opened_folder(folder) as path:
        clip = clip_named(path, name)
        info = probe(clip)
        scale = min(1.0, FRAME / max(info.width, info.height))
        size = max(1, round(info.height * scale)), max(1, round(info.width * scale))
        pixels = read_clip(clip, ClipSpec(1, *size)).pixels[0]
    picture, data = Image.fromarray(pixels.numpy()), BytesIO()
    picture.save(data, "JPEG", quality=85)
    return data.getvalue()
