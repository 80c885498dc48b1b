"""The critic of patches: its penalty, its batches, what it learns."""

import pytest
import torch
from known import random

from wotlab import PatchCost, iwd
from wotlab.iwd.game import PatchCritics, slope_penalty


@pytest.mark.parametrize(("norm", "dual"), [(1, torch.inf), (2, 2)])
def test_penalty_of_a_linear_critic_is_in_the_dual_norm(norm, dual):
    a, u, v = random(9) * 3 - 1, random(2, 4, 9), random(2, 4, 9, seed=1)
    penalty = slope_penalty(lambda w: a.expand_as(w), u, v, PatchCost(norm=norm))
    expected = (a.norm(p=dual) - 1).square().item()
    assert penalty.tolist() == pytest.approx([expected] * 2)


def test_penalty_is_per_patch():
    """One patch of the gradient wanted, the others flat: each flat patch pays 1."""
    u, first = random(1, 4, 9), torch.tensor([1.0, 0, 0, 0], dtype=torch.double)
    penalty = slope_penalty(lambda w: first[:, None].expand_as(w), u, u, PatchCost())
    assert penalty.item() == pytest.approx(3 / 4)


def test_critics_of_a_batch_do_not_meet():
    critics = PatchCritics(2, 9, like=random(1), generator=torch.Generator().manual_seed(0))
    u = random(2, 5, 9).requires_grad_()
    critics(u)[0].sum().backward()
    assert u.grad[0].abs().sum() > 0 and u.grad[1].abs().sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("norm", [1, 2])
def test_critic_learns_a_distance_that_is_known(norm):
    """Constant images: one point against another, where the best critic is linear."""
    dark = torch.full((2, 1, 6, 6), 0.2)
    light = dark + torch.tensor([0.3, 0.6])[:, None, None, None]
    cost = PatchCost(norm=norm)
    exact = iwd.exact(dark, light, cost)
    learned = iwd.critic(dark, light, cost, lr=2e-3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(learned, exact, rtol=0.1)
