"""Momentum by hand: FISTA's ages, and a new start where a step no longer climbs."""

import pytest
import torch

from wotlab.projections._ascent import Momentum


def test_two_steps_by_hand_and_a_restart_where_the_gradient_is_against_the_move():
    last = torch.zeros(2, 1, 1, 2, dtype=torch.double)
    at = Momentum(index=torch.arange(2), last=last, age=torch.ones(2, dtype=torch.double))
    step = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.double).reshape(2, 1, 1, 2)
    assert torch.equal(at.beyond(step, step), step)  # of age 1: no momentum yet
    age = (1 + 5**0.5) / 2
    assert at.age.tolist() == pytest.approx([age, age]) and torch.equal(at.last, step)
    # both gradients sum to -1; along the move (1, -1) the first climbs by 3, the second by -3
    climb = torch.tensor([[1.0, -2.0], [-2.0, 1.0]], dtype=torch.double).reshape(2, 1, 1, 2)
    went = at.beyond(2 * step, climb)
    older = (1 + (1 + 4 * age**2) ** 0.5) / 2
    assert went[0].flatten().tolist() == pytest.approx(
        [2 + (age - 1) / older, -2 - (age - 1) / older]
    )
    assert torch.equal(went[1], 2 * step[1])  # starts again, without momentum
    assert at.age.tolist() == pytest.approx([older, age])
