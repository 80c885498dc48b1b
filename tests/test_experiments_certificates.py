"""Radii of smoothed networks: a network whose boundary is known lies between proof and attack."""

import pytest
import torch
from torch import nn

from wotlab import smoothing
from wotlab.experiments import certificates
from wotlab.experiments.noise import Flows, Splitting


class Left(nn.Module):
    """Class 0 where the left pixel is brighter than the right one, as far as it can be seen."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 20 * z.flatten(1)


class Bright(nn.Module):
    """Class 0 where the left pixel is brighter than grey.

    With one threshold a pixel, splitting noise shows this for a share of its own brightness.
    """

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 20 * torch.stack([z[:, 0, 0, 0], 1 - z[:, 0, 0, 0]], 1)


WAYS = pytest.mark.parametrize(("way", "model"), [(Flows(0.2), Left()), (Splitting(0.5), Bright())])
X, Y = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0])


@WAYS
def test_a_known_boundary_lies_between_proof_and_attack(way, model, monkeypatch):
    """Half of the mass must move by one pixel: W is 1 / 2, and noise is even on both sides."""
    monkeypatch.setattr(certificates, "BUDGETS", (0.4, 0.8, 1.3, 1.8))  # of eps * 2
    proof = certificates.below(way, model, X, Y)[1]["radii"][0]
    attack = certificates.above(way, model, X, Y)[1]["radii"][0]
    assert 0 < proof <= 0.5 < attack <= 0.9
    # budgets that are too small: the median counts the last
    monkeypatch.setattr(certificates, "BUDGETS", (0.4, 0.8))
    assert certificates.above(way, model, X, Y) == (
        pytest.approx(784 * 0.4), {"radii": [None], "copies": 8, "steps": 60}
    )  # fmt: skip
    wrong = 1 - Y
    assert certificates.below(way, model, X, wrong)[1]["radii"] == [0.0]
    assert certificates.above(way, model, X, wrong)[1]["radii"] == [0.0]


@WAYS
def test_even_votes_are_no_class(way, model):
    even = torch.full((1, 1, 1, 2), 0.5)
    noise = torch.Generator().manual_seed(0)
    found = certificates.said(model, way, torch.cat([even, X, X.flip(3)]), noise)
    assert found.tolist() == [-1, 0, 1]
    assert certificates.other(found, torch.tensor([1, 1, 1])).tolist() == [False, True, False]


@WAYS
def test_averages_are_those_of_the_noise_and_let_gradients_through(way, model):
    soft = certificates.Averaged(model, way, torch.Generator().manual_seed(3))
    z = X.clone().requires_grad_()
    logs = soft(z)
    noise = torch.Generator().manual_seed(3)
    many = X.expand(certificates.COPIES, -1, -1, -1)
    kind = smoothing.noisy if way.name == "flows" else smoothing.noisy_l1
    shares = model(kind(many, way.scale, generator=noise)).softmax(1).mean(0, keepdim=True)
    assert torch.allclose(logs.exp(), shares, atol=1e-6)
    (slope,) = torch.autograd.grad(logs[0, 0] - logs[0, 1], z)
    assert float(slope[0, 0, 0, 0]) > float(slope[0, 0, 0, 1])
