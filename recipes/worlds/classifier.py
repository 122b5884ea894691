"""Which kind an object is, and how large, from a picture of it: kernel ridge regression against pictures drawn with the
grammar's own ``cover`` (e.g. Bishop, Pattern Recognition and Machine Learning, eq. 6.8 and 6.9).

Digits come from the *training* side of the handwriting. The pictures are blurred and noisy, as those of a video codec.

Legend: T frames, S side in pixels, N side of an aligned patch, M pictures that kinds are compared with.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .drawing import cover, digit_images
from .grammar import KINDS
from .segmentation import ndimage

PATCH = 24  # side of the aligned picture that kinds are told by
REACH = 2.3  # half its side, in radii of gyration: the tips of a star just fit
COPIES, SHAPE_COPIES = 3, 150  # pictures drawn of every handwritten image, and of every shape
BANDWIDTH = 0.5  # of the kernel, where patches have length 1
RIDGE = 0.01


def moments(covered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area ``[T]`` in pixels, centroid ``[T,2]`` (x, y) in pixels from the first pixel's corner, and radius of
    gyration ``[T]`` in pixels."""
    rows, columns = covered.sum(2), covered.sum(1)
    y, x = torch.arange(rows.shape[1]) + 0.5, torch.arange(columns.shape[1]) + 0.5
    area = covered.sum((1, 2))
    total = area.clamp(min=1e-3)
    centre = torch.stack([columns @ x, rows @ y], -1) / total[:, None]
    spread = (columns @ x.square() + rows @ y.square()) / total - centre.square().sum(-1)
    return area, centre, spread.clamp(min=0.25).sqrt()


def aligned(covered: Tensor, centre: Tensor, gyration: Tensor) -> Tensor:
    """The mean over frames of an object's coverage, each frame moved and scaled to a standard place: ``[N*N]`` with
    mean 0 and length 1."""
    axis = (torch.arange(PATCH) + 0.5) / PATCH * 2 - 1
    offset = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) * REACH
    grid = (centre[:, None, None] + offset * gyration[:, None, None, None]) / covered.shape[-1] * 2 - 1
    patch = F.grid_sample(covered[:, None], grid, mode="bilinear", align_corners=False).mean(0).flatten()
    patch = patch - patch.mean()
    length: Tensor = patch.norm().clamp(min=1e-6)
    return patch / length


def kind_scores(patch: Tensor) -> Tensor:
    """How much a patch ``[N*N]`` looks like each of the 16 kinds, and log(radius / radius of gyration): ``[17]``."""
    library, weights = _library()
    return (_kernel(patch[None], library) @ weights)[0]


@cache
def _library() -> tuple[Tensor, Tensor]:
    """Patches ``[M,N*N]`` that kinds are compared with, and their weights ``[M,17]``: kernel ridge regression of the
    16 kinds (1 for the right one, 0 for others) and of log(radius / radius of gyration). A fixed draw; 5 to 10 seconds
    on one thread, once in a process."""
    generator = torch.Generator().manual_seed(0)
    patches, targets = [], []
    for kind in KINDS:
        handwritten = digit_images("train").get(kind)
        for image in [None] * SHAPE_COPIES if handwritten is None else handwritten.repeat_interleave(COPIES, 0):
            patch, ratio = _example(kind, image, generator)
            patches.append(patch)
            targets.append([*(float(kind == other) for other in KINDS), ratio])
    library = torch.stack(patches)
    kernel = _kernel(library, library)
    kernel.diagonal().add_(RIDGE)
    return library, torch.cholesky_solve(torch.tensor(targets), torch.linalg.cholesky(kernel))


def _example(kind: str, image: Tensor | None, generator: torch.Generator) -> tuple[Tensor, float]:
    """One picture of a kind, as damaged as those that are read: its patch, and log(radius / radius of gyration)."""
    frames, side = 3, 44
    size, blur, noise = torch.rand(3, generator=generator).tolist()
    radius = 4.5 * (12.5 / 4.5) ** size  # pixels: from the small ones of a pair at side 48 to a large one at 64
    offset = (torch.arange(side) + 0.5) - (side / 2 + torch.rand(frames, 2, generator=generator))[..., None]
    alpha = cover(kind, offset[:, 0, None, :], offset[:, 1, :, None], torch.tensor(radius), image)
    alpha = torch.from_numpy(ndimage().gaussian_filter(alpha.numpy(), (0, 1.5 * blur, 1.5 * blur)))
    noisy = (alpha + 0.06 * noise * torch.randn(alpha.shape, generator=generator)).clamp(0, 1)
    picture = noisy * (F.max_pool2d(alpha, 5, stride=1, padding=2) > 0.3)
    _, centre, gyration = moments(picture)
    mean = gyration.square().mean().sqrt()
    return aligned(picture, centre, mean.expand(frames)), math.log(radius / float(mean))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """A Gaussian of the distance between patches of length 1, ``[A,B]``."""
    return ((a @ b.T - 1) / BANDWIDTH**2).exp()
