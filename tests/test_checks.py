"""Checks of arguments: what counts as a number, and what each message says."""

import numpy as np
import pytest
import torch

import wotlab
from wotlab._base import checks


@pytest.mark.parametrize("number", [0.1, 3, np.float32(0.1), np.int64(3), torch.tensor(0.1)])
def test_numbers_of_every_kind_are_numbers(number):
    checks.positive("eps", number)
    assert wotlab.LinfBall(number).eps == number


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_every_kind_are_counts(number):
    checks.count("steps", number)


@pytest.mark.parametrize(
    "number",
    [True, np.bool_(True), torch.tensor(True), "1", None, 1j, torch.ones(1), -0.1, np.float32(-1),
     float("nan"), torch.tensor(torch.inf)],
)  # fmt: skip
def test_what_is_no_finite_number_above_zero_is_refused(number):
    with pytest.raises(ValueError, match="eps must be a finite number"):
        checks.positive("eps", number, zero=True)


@pytest.mark.parametrize("number", [True, torch.tensor(True), 2.0, np.float64(2), "2", 0, -1])
def test_what_is_no_positive_integer_is_refused(number):
    with pytest.raises(ValueError, match="steps must be a positive integer"):
        checks.count("steps", number)


def test_zero_passes_only_where_it_may():
    checks.positive("eps", np.float32(0), zero=True)
    checks.count("steps", torch.tensor(0), zero=True)
    with pytest.raises(ValueError, match="above 0"):
        checks.positive("eps", np.float32(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_just_out_of_range_are_printed_in_full(dtype):
    x = torch.ones(1, 1, 2, 2, dtype=dtype)
    x[..., 0] += 2 * torch.finfo(dtype).eps
    with pytest.raises(ValueError, match=r"from 1\.0 to 1\.0{5,}[1-9]\d*\. .*x\.clamp\(0, 1\)"):
        checks.images("x", x)


def test_an_empty_batch_is_called_empty():
    with pytest.raises(ValueError, match=r"x is empty, .*\(0, 1, 2, 2\)"):
        checks.images("x", torch.ones(0, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_black_is_no_light_at_all(dtype):
    faint = torch.zeros(2, 1, 4, 4, dtype=dtype)
    faint[:, 0, 0, 0] = torch.finfo(dtype).smallest_normal
    checks.images("x", faint)
    checks.histograms("a", faint[:, 0, 0])
    faint[1] = 0
    checks.images("x", faint, black=True)
    with pytest.raises(ValueError, match="x must have mass to move; image 1 is black"):
        checks.images("x", faint)


def test_labels_are_one_class_number_an_image():
    checks.labels("y", torch.tensor([3, 0]), 2)
    bad = (torch.zeros(2, 1).long(), torch.zeros(3).long(), torch.zeros(2), torch.zeros(2).int(),
           torch.tensor(1), [3, 0])  # fmt: skip
    for y in bad:
        with pytest.raises(ValueError, match="y must be 2 class numbers, a tensor of dtype int64"):
            checks.labels("y", y, 2)
