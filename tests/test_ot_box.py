"""Sinkhorn iterates where mass lies; what it gives elsewhere is what it would give there."""

import pytest
import torch

from wotlab import GroundCost, ot


@pytest.mark.parametrize("cost", [GroundCost(None, 1, 1), GroundCost(None, 2, 2), GroundCost(None)])
@pytest.mark.parametrize("reg", [0.02, 0.3])
def test_a_black_frame_changes_nothing_and_potentials_reach_into_it(cost, reg):
    """Each image in a frame of its own; there f is the soft c-transform of g, and g that of f."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 1, 4, 5, generator=generator, dtype=torch.double)
    wide_a, wide_b = torch.zeros(2, 3, 1, 7, 8, dtype=torch.double)
    wide_a[..., 1:5, 2:7], wide_b[..., 1:5, 2:7] = a, b
    b_only = wide_b.clone()
    b_only[..., 6, 0] = 0.5  # b's mass reaches further than a's
    tight = ot.sinkhorn(a, b, cost, reg, tol=1e-10)
    framed = ot.sinkhorn(wide_a, wide_b, cost, reg, tol=1e-10)
    assert torch.allclose(tight.value, framed.value)
    assert torch.allclose(tight.f, framed.f[..., 1:5, 2:7], atol=1e-6)
    for left, right in ((wide_a, wide_b), (wide_a, b_only)):
        done = ot.sinkhorn(left, right, cost, reg, tol=1e-12)
        matrix = GroundCost(None, cost.p, cost.norm).dense(7, 8)
        weight = (right / right.sum((1, 2, 3), keepdim=True)).flatten(1).log()
        worth = (weight + done.g.flatten(1) / reg)[:, None] - matrix / reg
        assert torch.allclose(done.f.flatten(1), -reg * worth.logsumexp(2), atol=1e-8)
