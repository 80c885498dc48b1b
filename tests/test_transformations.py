"""Random transformations against the map of the plane that they are said to be."""

import math

import pytest
import torch

from wotlab._base import draws
from wotlab.transformations import Transformations, shifts, turns

HEIGHT, WIDTH, COUNT = 23, 31, 40


def plane():
    """Rows and columns from the centre; bilinear sampling is exact on images linear in them."""
    rows = torch.arange(HEIGHT).double()[:, None] - (HEIGHT - 1) / 2
    columns = torch.arange(WIDTH).double() - (WIDTH - 1) / 2
    return rows.expand(HEIGHT, WIDTH), columns.expand(HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "change",
    [Transformations(40, 0, 0, 0), Transformations(0, 0.2, 0, 0), Transformations(0, 0, 0.4, 0),
     Transformations(30, 0.1, 0.3, 0)],
)  # fmt: skip
def test_they_read_the_image_where_the_map_says(change):
    """z(s) = x(R s / factor + shift): turned, scaled and shifted about the centre, in pixels."""
    rows, columns = plane()
    z = (0.5 + 0.01 * rows + 0.007 * columns).expand(COUNT, 1, HEIGHT, WIDTH)
    made = change(z, torch.Generator().manual_seed(3))[:, 0]
    again = torch.Generator().manual_seed(3)
    turn, down, right, scale = 2 * draws.uniform(z.new_empty(4, COUNT), again) - 1
    seen = 0
    for k in range(COUNT):
        angle, size = math.radians(change.rotation * turn[k]), 1 + change.scaling * scale[k]
        row = (math.cos(angle) * rows + math.sin(angle) * columns) / size
        column = (math.cos(angle) * columns - math.sin(angle) * rows) / size
        row = row + change.translation * HEIGHT * down[k]
        column = column + change.translation * WIDTH * right[k]
        inside = (row.abs() <= (HEIGHT - 1) / 2) & (column.abs() <= (WIDTH - 1) / 2)
        outside = (row.abs() > (HEIGHT + 1) / 2) | (column.abs() > (WIDTH + 1) / 2)
        expected = 0.5 + 0.01 * row + 0.007 * column
        assert torch.allclose(made[k][inside], expected[inside], atol=1e-9)
        assert (made[k][outside] == 0).all()  # black comes in
        seen += int(inside.sum())
    assert seen > COUNT * HEIGHT * WIDTH / 3


def test_draws_fill_their_ranges_to_either_side():
    """A bright bar through the centre tells the angle; a dot the shift."""
    change, n = Transformations(0, 0.2, 0, 0), 400
    dot = torch.zeros(n, 1, 41, 21).double()
    dot[:, :, 20, 10] = 1
    moved = change(dot, torch.Generator().manual_seed(0))[:, 0]
    total = moved.sum((1, 2))
    for axis, size in ((2, 41), (1, 21)):
        place = (moved.sum(axis) * (torch.arange(size) - size // 2)).sum(1) / total
        assert place.abs().max() <= 0.2 * size + 1e-6
        assert place.min() < -0.18 * size and place.max() > 0.18 * size
        assert abs(place.mean()) < 0.02 * size


def test_noise_has_its_deviation_and_stays_in_range():
    z = torch.full((4, 3, 40, 40), 0.5).double()
    made = Transformations(0, 0, 0, 0.05)(z, torch.Generator().manual_seed(0))
    assert (made - z).std().item() == pytest.approx(0.05, rel=0.03)
    assert abs((made - z).mean()) < 0.002
    bright = Transformations(0, 0, 0, 0.3)(0 * z + 1, torch.Generator().manual_seed(0))
    assert bright.max() == 1 and bright.min() >= 0 and (bright == 1).double().mean() > 0.4


def test_shifts_are_those_to_the_eight_sides_and_the_border_moves_in():
    x = torch.rand(2, 3, 6, 7)
    rows, columns = torch.arange(6)[:, None], torch.arange(7)
    for pixels in (1, 2, 5):
        steps = [
            (a, b) for a in (-pixels, 0, pixels) for b in (-pixels, 0, pixels) if (a, b) != (0, 0)
        ]
        made = shifts(x, pixels)
        for (down, right), z in zip(steps, made, strict=True):
            seen = (rows + down).clamp(0, 5), (columns + right).clamp(0, 6)
            assert torch.equal(z, x[..., seen[0], seen[1]])


def test_turns_are_to_both_sides_about_the_centre():
    x = torch.rand(2, 3, 7, 7)
    right, left = turns(x, 90)
    assert torch.allclose(left, x.rot90(1, (2, 3)), atol=1e-6)
    assert torch.allclose(right, x.rot90(-1, (2, 3)), atol=1e-6)
    half = turns(x, 180)
    assert all(torch.allclose(z, x.flip(2, 3), atol=1e-6) for z in half)


def test_they_refuse_what_moves_nothing():
    x = torch.rand(1, 1, 6, 6)
    with pytest.raises(ValueError, match="pixels"):
        shifts(x, 0)
    with pytest.raises(ValueError, match="degrees"):
        turns(x, 0)
