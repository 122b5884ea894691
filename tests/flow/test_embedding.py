"""The embedding flow: words survive the round trip, and training does not collapse E."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from uvg_core.flow.continuous import euler_step, interpolate, velocity_target
from uvg_core.flow.embedding import (
    embed_tokens,
    embedding_losses,
    nearest_tokens,
    normalised_rows,
)
from uvg_core.flow.schedule import video_sigmas


def test_words_survive_the_round_trip() -> None:
    matrix = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(40)[None]
    vectors = embed_tokens(matrix, tokens)
    assert torch.equal(nearest_tokens(matrix.__getitem__, 40, vectors), tokens)
    longer = (3 * matrix).__getitem__  # the length of a row means nothing
    assert torch.equal(nearest_tokens(longer, 40, vectors + 0.1), tokens)
    torch.testing.assert_close(vectors.square().mean(-1), torch.ones(1, 40))
    assert nearest_tokens(matrix.__getitem__, 40, vectors[:, :0]).shape == (1, 0)


def test_the_true_velocity_leads_to_the_words() -> None:
    g = torch.Generator().manual_seed(1)
    matrix, tokens = torch.randn(20, 12, generator=g), torch.tensor([[4, 7, 19]])
    data = embed_tokens(matrix, tokens)
    noise = torch.randn(data.shape, generator=g)
    x, sigmas = noise, video_sigmas(6, 1.0).tolist()
    for here, there in pairwise(sigmas):
        x = euler_step(x, velocity_target(data, noise), here, there)
    assert torch.equal(nearest_tokens(matrix.__getitem__, 20, x), tokens)


def _train(anchor_weight: float) -> tuple[torch.Tensor, float]:
    """A small network learns a flow over words that a hint gives away; E is learned with it."""
    torch.manual_seed(0)
    vocabulary, width = 12, 16
    matrix = nn.Parameter(torch.randn(vocabulary, width))
    net = nn.Sequential(nn.Linear(width + 1 + vocabulary, 96), nn.SiLU(), nn.Linear(96, width))
    optimizer = torch.optim.Adam([matrix, *net.parameters()], lr=4e-3)
    for _ in range(500):
        tokens = torch.randint(vocabulary, (64, 1))
        sigma = torch.rand(64)
        data = embed_tokens(matrix, tokens)
        noise = torch.randn(data.shape)
        z = interpolate(data, noise, sigma[:, None, None])
        hint = F.one_hot(tokens, vocabulary).float()
        velocity = net(torch.cat([z, sigma[:, None, None], hint * (torch.rand(64, 1, 1) < 0.5)], -1))
        losses = embedding_losses(velocity, z, tokens, matrix, noise, sigma)
        velocity_loss, anchor = (loss.mean() for loss in losses)
        optimizer.zero_grad()
        (velocity_loss + anchor_weight * anchor).backward()
        optimizer.step()
    rows = normalised_rows(matrix.detach())
    likeness = F.normalize(rows, dim=-1) @ F.normalize(rows, dim=-1).T
    return likeness - torch.eye(vocabulary), velocity_loss.item()


def test_the_anchor_keeps_rows_apart() -> None:
    """Without the anchor the rows fall together (that makes the velocity easy); with it no two rows come near."""
    collapsed, _ = _train(anchor_weight=0.0)
    anchored, _ = _train(anchor_weight=1.0)
    assert collapsed.max() > 0.9
    assert anchored.max() < 0.5
