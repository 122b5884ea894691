"""High dynamic range and wide colours -> those of an ordinary screen: BT.709, 100 nits, gamma 2.4; sRGB where a picture
has a colour profile."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .profile import Profile, profile_of
from .sidedata import side_data

# Transfers and primaries by their number in the file (H.273).
_PQ, _HLG = 16, 18
_BT709, _BT2020 = 1, 9
_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
_PRIMARIES = {
    _BT709: ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06)),
    _BT2020: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    11: _P3,
    12: _P3,
}
_NAMES = {_BT2020: "BT.2020", 11: "P3", 12: "P3"}
_WHITE = (0.3127, 0.329)
_GAMMA = 2.4  # of the screen, BT.1886
_SDR = 100.0  # nits of its white
_BRIGHTEST = 10_000.0  # nits that PQ can say
_USUAL_PEAK = 1000.0  # of what says none, and of HLG by BT.2100
_ROWS = 64  # mapped at once: a frame as floating-point numbers takes many times its bytes


@dataclass(frozen=True)
class Colour:
    """What the numbers of a frame mean, where that is not what they mean on an ordinary screen.

    transfer, primaries   as the file numbers them
    peak                  nits of the brightest that a PQ picture shows: its MaxCLL, else its mastering display's
    """

    transfer: int
    primaries: int
    peak: float = _USUAL_PEAK

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (_PQ, _HLG)

    def __str__(self) -> str:
        """What was done, in a few words."""
        if not self.is_hdr:
            return f"{_NAMES[self.primaries]} colours brought to BT.709"
        kind = "HLG" if self.transfer == _HLG else f"PQ up to {self.peak:.0f} nits"
        return f"HDR ({kind}) tone-mapped to SDR"


def colour_of(frame: Any, source: Any) -> Colour | Profile | None:
    """What a decoded frame's colours mean; None for ordinary ones. A profile says more than a number, except of HDR."""
    transfer, primaries = int(frame.color_trc or 0), int(frame.color_primaries or 0)
    if transfer not in (_PQ, _HLG):
        if profile := getattr(source, "colours", None) or _profile(frame, source):
            return profile
        return Colour(transfer, primaries) if primaries in _NAMES else None
    primaries = primaries if primaries in _PRIMARIES else _BT2020
    return Colour(transfer, primaries, _peak(frame) if transfer == _PQ else _USUAL_PEAK)


def _profile(frame: Any, source: Any) -> Profile | None:
    data, layout = source.icc_profile or side_data(frame, "ICC_PROFILE"), frame.format
    is_gray = len(layout.components) < 3 and not layout.has_palette
    return profile_of(data, "L" if is_gray else "RGB") if data else None


def _peak(frame: Any) -> float:
    light = side_data(frame, "CONTENT_LIGHT_LEVEL")
    stated = float(struct.unpack_from("=I", light)[0]) if len(light) >= 4 else 0.0
    display = side_data(frame, "MASTERING_DISPLAY_METADATA")  # ten fractions, then which of them are there
    if not stated and len(display) >= 88:
        number, unit, _, is_stated = struct.unpack_from("=iiii", display, 72)
        stated = number / unit if is_stated and unit else 0.0
    return min(max(stated, _SDR), _BRIGHTEST) if stated > 0 else _USUAL_PEAK


def to_sdr(picture: Tensor, colour: Colour) -> Tensor:
    """Float ``[H,W,3]``, R'G'B' from 0 to 1 as the file means them -> uint8 ``[H,W,3]`` as BT.709 means them."""
    return torch.cat([_mapped(rows, colour) for rows in picture.split(_ROWS)])


def _mapped(signal: Tensor, colour: Colour) -> Tensor:
    signal, primaries = signal.clamp(0, 1), colour.primaries
    if colour.is_hdr:
        light = _from_hlg(signal) if colour.transfer == _HLG else _from_pq(signal) * (_BRIGHTEST / colour.peak)
        if primaries != _BT2020:
            light = light @ _matrix(primaries, _BT2020)
        signal, primaries = _tone_mapped(light, colour.peak), _BT2020
    light = signal.clamp(0, 1).pow(_GAMMA) @ _matrix(primaries, _BT709)
    return (light.clamp(0, 1).pow(1 / _GAMMA) * 255).round().to(torch.uint8)


def _from_pq(signal: Tensor) -> Tensor:
    """SMPTE ST 2084: light, 1 being 10000 nits."""
    root = signal.pow(32 / 2523)
    return ((root - 107 / 128).clamp_min(0) / (2413 / 128 - 2392 / 128 * root)).pow(16384 / 2610)


def _from_hlg(signal: Tensor) -> Tensor:
    """BT.2100: light of a display of 1000 nits, 1 being its brightest."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = torch.where(signal <= 0.5, signal.square() / 3, (((signal - c) / a).exp() + b) / 12)
    luminance = scene @ torch.tensor([0.2627, 0.6780, 0.0593])
    return scene * luminance.pow(0.2)[..., None]  # the system gamma is 1.2


def _tone_mapped(light: Tensor, peak: float) -> Tensor:
    """ITU-R BT.2446, method A: BT.2020 light, 1 being ``peak`` nits -> R'G'B' for a display of 100 nits."""
    red, green, blue = light.clamp(0, 1).pow(1 / _GAMMA).unbind(-1)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    rho_hdr, rho_sdr = (1 + 32 * (nits / _BRIGHTEST) ** (1 / _GAMMA) for nits in (peak, _SDR))
    seen = (luma * (rho_hdr - 1)).log1p() / math.log(rho_hdr)
    bent = torch.where(seen < 0.9909, (-1.1510 * seen + 2.7811) * seen - 0.6302, 0.5 * seen + 0.5)
    bent = torch.where(seen <= 0.7399, 1.0770 * seen, bent)
    mapped = (rho_sdr**bent - 1) / (rho_sdr - 1)
    scale = mapped / (1.1 * luma).clamp_min(1e-6)
    cb, cr = (scale * (blue - luma) / 1.8814, scale * (red - luma) / 1.4746)
    luma = mapped - (0.1 * cr).clamp_min(0)
    red, blue = luma + 1.4746 * cr, luma + 1.8814 * cb
    return torch.stack([red, (luma - 0.2627 * red - 0.0593 * blue) / 0.6780, blue], -1)


@cache
def _matrix(source: int, target: int) -> Tensor:
    """``light @ matrix`` has other primaries and the same colour."""
    to_xyz, from_xyz = _xyz(_PRIMARIES[source]), torch.linalg.inv(_xyz(_PRIMARIES[target]))
    matrix: Tensor = (from_xyz @ to_xyz).T.float()
    return matrix


def _xyz(primaries: tuple[tuple[float, float], ...]) -> Tensor:
    columns = [torch.tensor([x / y, 1, (1 - x - y) / y], dtype=torch.float64) for x, y in (*primaries, _WHITE)]
    colours, white = torch.stack(columns[:3], 1), columns[3]
    matrix: Tensor = colours * torch.linalg.solve(colours, white)
    return matrix
