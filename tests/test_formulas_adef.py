"""ADef's least field and its step, against convolutions and differences by SciPy and NumPy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import nn

from wotlab.attacks._adef import Deform, Nearest, least_field, smoothed


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def blurred(field, sigma):
    """A Gaussian up to three deviations, its weights of sum 1; the image mirrored at its border."""
    if sigma == 0:
        return field
    reach = math.ceil(3 * sigma)
    weights = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    weights /= weights.sum()
    once = correlate1d(field.numpy(), weights, axis=-1, mode="mirror")
    return torch.from_numpy(correlate1d(once, weights, axis=-2, mode="mirror"))


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.2])
def test_smoothing_is_a_gaussian(sigma):
    field = random(2, 2, 7, 9)
    assert torch.allclose(smoothed(field, sigma), blurred(field, sigma), atol=1e-8)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.2])
def test_the_least_field_is_its_formula(sigma):
    """alpha(s) = sum_c dF/dz_c(s) grad z_c(s), rows first; the field is S S alpha."""
    z, gradient = random(2, 3, 7, 9), random(2, 3, 7, 9, seed=1)
    down, right = np.gradient(z.numpy(), axis=(2, 3))
    alpha = np.stack([(gradient.numpy() * slope).sum(1) for slope in (down, right)], 1)
    expected = blurred(blurred(torch.from_numpy(alpha), sigma), sigma)
    field, gain = least_field(z, gradient, sigma)
    assert torch.allclose(field, expected, atol=1e-8)
    assert torch.allclose(gain, (torch.from_numpy(alpha) * expected).sum((1, 2, 3)))


def ramp(size=16):
    """A square image that is linear from 0.2 to 0.8, downwards."""
    t = torch.linspace(0.2, 0.8, size).double()
    return t[:, None].expand(size, size)[None, None].clone()


@pytest.mark.parametrize(("margin", "overshoot"), [(-0.01, 1.0), (-0.01, 1.2), (-0.02, 1.5)])
def test_a_step_closes_the_margin_and_overshoots(margin, overshoot):
    x, weight = ramp(), random(1, 1, 16, 16, seed=3)
    step = Deform(0.0, overshoot)
    step.start(x)
    step.step(x, weight, torch.tensor([margin]).double(), torch.tensor([False]), 0)
    slope = torch.gradient(x, dim=2)[0]
    alpha = weight * slope
    tau = -overshoot * margin * alpha / alpha.square().sum()
    assert torch.allclose(step.flow[:, 0], tau[:, 0]) and not bool(step.flow[:, 1].any())


def test_no_step_moves_a_pixel_by_more_than_one():
    x, weight = ramp().repeat(2, 1, 1, 1), random(2, 1, 16, 16, seed=3)
    step = Deform(0.0, 1.2)
    step.start(x)
    loss = torch.tensor([-1e3, -1e-2]).double()
    step.step(x, weight, loss, torch.tensor([False, False]), 0)
    longest = step.flow.norm(dim=1).amax((1, 2))
    assert longest[0].item() == pytest.approx(1.0) and 0 < longest[1].item() < 0.9
    # in the direction of the least field; the other image's own step is not shortened
    alpha = weight * torch.gradient(x, dim=2)[0]
    own = 1.2 * 1e-2 * alpha[1, 0] / alpha[1].square().sum()
    assert torch.allclose(step.flow[1, 0], own)
    assert torch.allclose(step.flow[0, 0], alpha[0, 0] / alpha[0].abs().max())


@pytest.mark.parametrize(
    ("slopes", "margins", "nearest"),
    [
        ((1.0, 0.1), (-0.02, -0.01), 0),  # not the least margin
        ((1.0, 0.5), (-0.02, -0.008), 1),  # nor the least margin per squared slope
        ((1.0, 0.5), (-0.02, -0.012), 0),  # nor the other extreme
        ((0.5, 1.0), (-0.008, -0.02), 0),  # whichever comes first
    ],
)
def test_the_nearest_class_is_that_of_the_shortest_field(slopes, margins, nearest):
    """Linear margins of the same direction: a field is as long as |F| by slope."""
    x, w = ramp(), random(256, seed=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([0 * w, slopes[0] * w, slopes[1] * w]))
        model[1].bias.copy_(-model[1].weight @ x.flatten())
        model[1].bias += torch.tensor([0.0, *margins])
    label = torch.tensor([0])
    objective = Nearest(model, label, False, "margin", candidates=9, sigma=0.5)
    gradient, margin, broken = objective.gradient(x)
    assert margin.item() == pytest.approx(margins[nearest]) and not bool(broken)
    assert torch.allclose(gradient.flatten(), slopes[nearest] * w)
