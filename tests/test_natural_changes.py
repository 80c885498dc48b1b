"""Natural perturbations: what they keep, how far they reach, that a seed repeats them."""

import pytest
import torch

import wotlab
from wotlab import transformations


@pytest.fixture(scope="module")
def digits():
    x, _ = wotlab.data.load("digits", "test").tensors(slice(0, 12))
    return torch.nn.functional.pad(x, (8, 8, 8, 8))


def seeded():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("perturb", [
    lambda x: transformations.translate(x, 0.3, generator=seeded()),
    lambda x: transformations.rotate(x, 30.0, generator=seeded()),
    lambda x: transformations.rotate(x, 30.0, exactly=False, generator=seeded()),
    lambda x: transformations.blur(x, 1.5),
])  # fmt: skip
def test_shape_range_and_repeatable(digits, perturb):
    z = perturb(digits)
    assert z.shape == digits.shape and z.dtype == digits.dtype
    assert float(z.min()) >= 0 and float(z.max()) <= 1
    assert not torch.equal(z, digits)
    assert torch.equal(z, perturb(digits))


def test_nothing_at_zero(digits):
    assert torch.equal(transformations.translate(digits, 0.0), digits)
    assert torch.allclose(transformations.rotate(digits, 0.0), digits)


def test_shifts_are_whole_pixels_within_the_share(digits):
    # a wide frame of black: a shift by up to 0.2 * 24 = 4.8 rounds to at most 5 and loses nothing
    z = transformations.translate(digits, 0.2, generator=seeded())
    shifts = set()
    for before, after in zip(digits, z, strict=True):
        found = [
            (a, b)
            for a in range(-6, 7)
            for b in range(-6, 7)
            if torch.equal(before.roll((a, b), (1, 2)), after)
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert max(max(map(abs, s)) for s in shifts) <= 5 and len(shifts) > 6


def test_rotations_turn_by_exactly_the_angle_or_by_up_to_it(digits):
    turned = transformations.rotate(digits, 90.0, generator=seeded())
    sides = [
        [torch.allclose(z, x.rot90(k, (1, 2)), atol=1e-4) for k in (1, -1)]
        for x, z in zip(digits, turned, strict=True)
    ]
    assert all(sum(side) == 1 for side in sides) and {tuple(s) for s in sides} == {
        (True, False),
        (False, True),
    }
    distance = [
        (transformations.rotate(digits, 40.0, exactly=e, generator=seeded()) - digits).norm()
        for e in (True, False)
    ]
    assert distance[1] < distance[0]


def test_blur_keeps_mass_and_symmetry(digits):
    z = transformations.blur(digits, 1.0)
    assert torch.allclose(z.sum((1, 2, 3)), digits.sum((1, 2, 3)), rtol=1e-4)
    assert torch.allclose(transformations.blur(digits.flip(3), 1.0), z.flip(3), atol=1e-6)


def test_blur_is_the_gaussian():
    dot = torch.zeros(1, 1, 33, 33, dtype=torch.double)
    dot[..., 16, 16] = 1
    grid = torch.arange(33.0, dtype=torch.double) - 16
    row = (-(grid**2) / (2 * 2.0**2)).exp()
    row[grid.abs() > 8] = 0
    row /= row.sum()
    assert torch.allclose(transformations.blur(dot, 2.0)[0, 0], row[:, None] * row, atol=1e-9)


def test_procrustes_ignores_scale_and_sees_change(digits):
    same = transformations.procrustes(digits, digits)
    assert torch.allclose(same, torch.zeros(12), atol=1e-6)
    assert torch.allclose(
        transformations.procrustes(digits, digits / 2), torch.zeros(12), atol=1e-6
    )
    assert torch.allclose(  # rows one pixel further right: points moved by one permutation
        transformations.procrustes(digits, digits.roll(3, 3)), torch.zeros(12), atol=1e-6
    )
    far, near = (
        transformations.procrustes(digits, transformations.translate(digits, s, generator=seeded()))
        for s in (0.3, 0.05)
    )
    assert bool((far <= 1).all()) and float(far.mean()) > float(near.mean()) > 0


@pytest.mark.parametrize("call, message", [
    (lambda x: transformations.translate(x, 1.5), "share must lie in"),
    (lambda x: transformations.rotate(x, -3.0), "degrees must be"),
    (lambda x: transformations.blur(x, 0.0), "sigma must be"),
    (lambda x: transformations.blur(x, 9.0), "sigma must be below a quarter"),
    (lambda x: transformations.blur(x * 2, 1.0), "x must"),
    (lambda x: transformations.procrustes(x, x[:, :, 1:]), "z must have the shape of x"),
    (lambda x: transformations.procrustes(x, torch.full_like(x, 0.5)), "rows are all the same"),
])  # fmt: skip
def test_bad_input(digits, call, message):
    with pytest.raises(ValueError, match=message):
        call(digits)
