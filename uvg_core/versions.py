"""Oldest versions of the packages that parse files of strangers, asked for where they do."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from .errors import UniViGUError


@cache
def require(package: str, at_least: tuple[int, ...], why: str) -> None:
    """Raise UniViGUError, with the version found and wanted, for an older ``package`` (its name on PyPI) than this.

    ``why`` completes the sentence: "older ones ...". A package that says no version is taken as it is.
    """
    try:
        found = version(package)
    except PackageNotFoundError:
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", found.split("+")[0])[: len(at_least)])
    if numbers < at_least:
        wanted = ".".join(map(str, at_least))
        raise UniViGUError(
            f"{package} {found} is installed, {wanted} or newer is needed: older ones {why}. "
            f'pip install "{package}>={wanted}"'
        )


def require_pillow() -> None:
    """For what is drawn with Pillow from texts and pixels of strangers. Of their files it opens animated WebP, AVIF
    with transparent parts, JPEG in CMYK, and colour profiles."""
    require("pillow", (12, 3, 0), "write beyond their pictures (CVE-2026-59199)")
