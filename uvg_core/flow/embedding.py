"""The embedding flow: text as a continuous flow in the space of the embedding matrix E (paper, section "Uni-flow").

Tokens map to rows of E; z interpolates between Gaussian noise and the row exactly like the video
(``flow/continuous.py``); the text head predicts the velocity noise - row. Rows are normalised to length sqrt(D), so
that data and noise have the same scale and E cannot shrink the loss by shrinking itself. A velocity loss alone still
collapses E (all rows equal makes the velocity trivial to predict): the rounding cross-entropy anchors it, as in
Diffusion-LM (arXiv 2205.14217, section 4.2).

Legend: B batch, L tokens, V rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .continuous import clean_estimate, velocity_target
from .discrete import CHUNK_NUMBERS


def normalised_rows(matrix_VD: Tensor) -> Tensor:
    """E with every row at length sqrt(D), i.e. unit variance per coordinate; float32."""
    return F.normalize(matrix_VD.float(), dim=-1) * math.sqrt(matrix_VD.shape[-1])


def embed_tokens(matrix_VD: Tensor, tokens_BL: Tensor) -> Tensor:
    """Text vectors ``[B,L,D]``, float32."""
    return normalised_rows(F.embedding(tokens_BL, matrix_VD))


def nearest_tokens(embed: Callable[[Tensor], Tensor], count: int, vectors_BLD: Tensor) -> Tensor:
    """Ids ``[B,L]`` of the rows nearest to the vectors. Rows have one length, so the largest dot product wins.

    ``embed(ids)`` gives rows of E, of which there are ``count``; it is asked for a piece at a time, so that E may lie
    anywhere and a float32 copy of it never exists."""
    flat = vectors_BLD.float().flatten(0, -2)
    best = torch.full(flat.shape[:1], -torch.inf, device=flat.device)
    ids = torch.zeros(flat.shape[:1], dtype=torch.long, device=flat.device)
    step = max(1, CHUNK_NUMBERS // max(flat.shape[-1], len(flat)))
    for start in range(0, count, step):
        rows = embed(torch.arange(start, min(start + step, count), device=flat.device))
        value, index = (flat @ normalised_rows(rows).T).max(-1)
        ids = torch.where(value > best, index + start, ids)
        best = torch.maximum(value, best)
    return ids.view(vectors_BLD.shape[:-1])


def rounding_logits(matrix_VD: Tensor, vectors_BLD: Tensor) -> Tensor:
    """Logits ``[B,L,V]`` of the token given a clean estimate: cosine similarity, sharpened by sqrt(D)."""
    rows = normalised_rows(matrix_VD)
    return vectors_BLD.float() @ rows.T / math.sqrt(matrix_VD.shape[-1])


def embedding_losses(
    velocity_BLD: Tensor, z_BLD: Tensor, tokens_BL: Tensor, matrix_VD: Tensor, noise_BLD: Tensor, sigma_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Velocity loss and anchor ``[B,L]``: (mean squared error against noise - row, rounding cross-entropy of the clean
    estimate that the velocity implies)."""
    velocity = velocity_BLD.float()
    error = (velocity - velocity_target(embed_tokens(matrix_VD, tokens_BL), noise_BLD)).square().mean(-1)
    logits = rounding_logits(matrix_VD, clean_estimate(z_BLD.float(), velocity, sigma_B[:, None, None]))
    anchor = F.cross_entropy(logits.flatten(0, 1), tokens_BL.flatten(), reduction="none")
    return error, anchor.view(error.shape)
