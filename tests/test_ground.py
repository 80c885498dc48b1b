"""The ground cost: local windows and the dense matrix are two views of one thing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wotlab import GroundCost

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))
windows = st.sampled_from([1, 3, 5, None])


@settings(max_examples=60, deadline=None)
@given(sizes, windows, st.integers(1, 3), st.integers(0, 2**31))
def test_scatter_is_the_adjoint_of_gather(size, window, channels, seed):
    random = torch.Generator().manual_seed(seed)
    cost, image = GroundCost(window), torch.randn(2, channels, *size, generator=random)
    found = cost.gather(image)
    mass = torch.randn(found.shape, generator=random)
    left, right = (found * mass).sum(), (image * cost.scatter(mass)).sum()
    assert torch.isclose(left, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("p", [0.5, 1, 2, 3.5])
def test_dense_matrix_holds_the_cost_of_each_step(norm, p):
    h, w, cost = 3, 5, GroundCost(3, p, norm)
    dense, steps = cost.dense(h, w), cost.offsets(h, w)
    for i in range(h * w):
        for step, price in zip(steps, cost.costs(h, w, dtype=torch.float64), strict=True):
            row, column = i // w + int(step[0]), i % w + int(step[1])
            if 0 <= row < h and 0 <= column < w:
                assert dense[i, row * w + column] == pytest.approx(float(price))
    assert int(dense.isfinite().sum()) == int(cost.inside(h, w).sum())
    length = (1 + 1) if norm == 1 else 2**0.5
    assert dense[0, w + 1] == pytest.approx(length**p)


@pytest.mark.parametrize(("norm", "p"), [(1, 1), (2, 2)])
def test_separable_costs_are_sums_over_the_axes(norm, p):
    cost = GroundCost(None, p, norm)
    rows, columns = cost.axis(3, dtype=torch.double), cost.axis(4, dtype=torch.double)
    summed = rows[:, None, :, None] + columns[None, :, None, :]
    assert cost.separable
    assert torch.allclose(summed.reshape(12, 12), cost.dense(3, 4))
    assert not GroundCost(None, 1, 2).separable


@pytest.mark.parametrize("norm", [1, 2])
def test_cost_with_p_one_is_a_metric(norm):
    c = GroundCost(None, 1, norm).dense(4, 3)
    assert torch.equal(c, c.T) and (c.diagonal() == 0).all()
    assert (c[:, None, :] <= c[:, :, None] + c[None, :, :] + 1e-12).all()


def test_gather_reads_the_pixel_at_the_end_of_each_step():
    cost, image = GroundCost(3), torch.arange(12.0).view(1, 1, 3, 4)
    found = cost.gather(image)[0, 0]
    for k, (down, right) in enumerate(cost.offsets(3, 4).tolist()):
        row, column = 1 + down, 2 + right
        assert found[k, 1, 2] == image[0, 0, row, column]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window": 4}, "window"),
        ({"window": -1}, "window"),
        ({"window": 3.0}, "window"),
        ({"window": True}, "window"),
        ({"p": 0}, "p must"),
        ({"p": float("inf")}, "p must"),
        ({"p": float("nan")}, "p must"),
        ({"norm": 3}, "norm"),
    ],
)
def test_bad_input_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        GroundCost(**options)
