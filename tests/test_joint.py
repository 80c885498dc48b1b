"""The transport term of GOT: against exact solvers, its bounds, its gradient, its refusals."""

import math

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wotlab.training import JointCost, JointTransport

N, K, C = 12, 5, 3


def batch(seed: int, shift: float = 0.0):
    draw = torch.Generator().manual_seed(seed)
    z, logits = torch.randn(N, K, generator=draw), torch.randn(N, C, generator=draw)
    return (z + shift).double(), logits.double()


def labels():
    return torch.arange(N) % C


@pytest.mark.parametrize("latent", ["cosine", "l2"])
@pytest.mark.parametrize("prediction", ["kl", "reverse-kl", "l1"])
def test_cost_is_what_its_names_say(latent, prediction):
    u, v = batch(0), batch(1)
    cost = JointCost(latent, prediction, lam=0.7)(u, v)
    p, q = u[1].softmax(1), v[1].softmax(1)
    for i, j in ((0, 0), (3, 7), (11, 2)):
        if latent == "cosine":
            d_x = 1 - F.cosine_similarity(u[0][i], v[0][j], 0)
        else:
            d_x = (u[0][i] - v[0][j]).norm()
        d_y = {
            "kl": (p[i] * (p[i] / q[j]).log()).sum(),
            "reverse-kl": (q[j] * (q[j] / p[i]).log()).sum(),
            "l1": (p[i] - q[j]).abs().sum(),
        }[prediction]
        assert cost[i, j] == pytest.approx(float(0.7 * d_x + d_y), rel=1e-9)
    same = JointCost(latent, prediction)(u, u).diagonal()
    assert same.abs().max() < 1e-6


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), theta=st.sampled_from([0.05, 0.1, 0.5]))
def test_solved_terms_are_those_of_exact_solvers(seed, theta):
    u, v = batch(seed), batch(seed + 1, 0.5)
    cost = JointCost()(u, v).numpy()
    mass = np.full(N, 1 / N)
    exact = JointTransport("exact")(u, v, (labels(), labels()))
    assert exact == pytest.approx(pot.emd2(mass, mass, cost), abs=1e-9)
    plan = pot.sinkhorn(
        mass, mass, cost, theta, method="sinkhorn_log", numItermax=50_000, stopThr=1e-8
    )
    kl = (plan * np.log(np.maximum(plan, 1e-300) / np.outer(mass, mass))).sum()
    entropic = JointTransport("entropic", reg=theta)(u, v, (labels(), labels()))
    assert entropic == pytest.approx((plan * cost).sum() + theta * kl, abs=1e-5)
    assert exact <= entropic + 1e-9 <= cost.trace() / N + theta * np.log(N) + 1e-6


def test_no_potential_beats_the_solved_one_and_the_best_reaches_it():
    u, v = batch(3), batch(4, 0.5)
    y = labels(), labels()
    solved = JointTransport("entropic")(u, v, y)
    term = JointTransport("semi-dual")
    draw = torch.Generator().manual_seed(0)
    values = torch.zeros(N, 1, dtype=torch.double, requires_grad=True)
    for _ in range(50):
        random = torch.randn(N, 1, generator=draw)
        assert term(u, v, y, lambda z: random) <= solved + 1e-6  # noqa: B023
    climb = torch.optim.Adam([values], 0.05, maximize=True)
    for _ in range(1500):
        climb.zero_grad()
        best = term(u, v, y, lambda z: values)
        best.backward()
        climb.step()
    assert best.item() == pytest.approx(solved.item(), abs=1e-4)


def test_with_all_means_over_pairs_there_is_no_transport():
    """Erratum d1: the maximum over potentials is then the mean cost of the pairs."""
    u, v = batch(5), batch(6, 0.5)
    cost = JointCost()(u, v)
    pairs = float(cost.diagonal().mean())

    def value(phi, theta=0.1):  # each clean point beside its own attack
        soft = ((phi - cost.diagonal()) / theta).logsumexp(0) - math.log(N)
        return float(phi.mean() - theta * soft)

    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert value(torch.randn(N, generator=draw)) < pairs
    assert value(cost.diagonal() + 3) == pytest.approx(pairs)
    y = labels(), labels()
    paired = JointTransport("paired")
    assert float(paired(u, v, y)) == pytest.approx(pairs)
    assert float(paired(u, u, y)) == pytest.approx(0, abs=1e-9)
    assert JointTransport("exact")(u, v, y) < pairs
    with pytest.raises(ValueError, match="got 11 for 12"):
        paired(u, tuple(part[1:] for part in v), (y[0], y[1][1:]))


@pytest.mark.parametrize("kind", ["semi-dual", "entropic", "exact"])
def test_matched_labels_are_one_problem_a_class(kind):
    u, v, y = batch(7), batch(8, 0.3), labels()
    y[0] = 1  # unlike shares: 3, 5, 4
    phi = lambda z: z[:, :1]  # noqa: E731
    whole = JointTransport(kind, match_labels=True)(u, v, (y, y), phi)
    parts = 0.0
    for k in y.unique():
        some = y == k
        inside = JointTransport(kind)(
            tuple(p[some] for p in u), tuple(p[some] for p in v), (y[some], y[some]), phi
        )
        parts += float(some.double().mean()) * float(inside)
    assert float(whole) == pytest.approx(parts, abs=1e-6)
    free = JointTransport("exact")(u, v, (y, y))
    assert JointTransport("exact", match_labels=True)(u, v, (y, y)) >= free - 1e-9


def test_a_class_that_one_side_lacks_is_refused_and_never_infinite():
    u, v, y = batch(9), batch(10), labels()
    other = y.clone()
    other[y == 2] = torch.tensor([0, 0, 1, 1])
    for kind in ("semi-dual", "entropic", "exact"):
        term = JointTransport(kind, match_labels=True)
        with pytest.raises(ValueError, match=r"class 2 has 33% .* and 0%"):
            term(u, v, (y, other), lambda z: z[:, :1])
        # classes that both lack do not matter
        assert torch.isfinite(term(u, v, (2 * y + 5, 2 * y + 5), lambda z: z[:, :1]))


def test_the_divergence_is_zero_for_the_same_law_and_positive_else():
    term = JointTransport("divergence", JointCost("l2", "l1"))
    u, v, y = batch(11), batch(12, 1.0), labels()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    same = tuple(part[order] for part in u)
    assert abs(float(term(u, same, (y, y[order])))) < 1e-6
    assert term(u, v, (y, y)) > 0.1
    biased = JointTransport("entropic", JointCost("l2", "l1"), reg=1.0)
    assert biased(u, u, (y, y)) > 0.3  # the entropic value is not zero there


@pytest.mark.parametrize("kind", ["semi-dual", "entropic", "divergence", "exact", "paired"])
@pytest.mark.parametrize("match", [False, True])
def test_gradient(kind, match):
    cost = JointCost("l2", "l1") if kind == "divergence" else JointCost()
    term = JointTransport(kind, cost, reg=0.3, match_labels=match)
    u, v, y = batch(13), batch(14, 0.5), labels()
    parts = [part.clone().requires_grad_() for part in (*u, *v)]

    def value(*parts):
        return term(parts[:2], parts[2:], (y, y), lambda z: z[:, :1])

    slopes = torch.autograd.grad(value(*parts), parts)
    step = 1e-4
    for k, (part, slope) in enumerate(zip(parts, slopes, strict=True)):
        way = torch.randn(part.shape, generator=torch.Generator().manual_seed(k)).double()
        ends = []
        for sign in (1, -1):
            moved = [p.detach().clone() for p in parts]
            moved[k] += sign * step * way
            ends.append(float(value(*moved)))
        measured = (ends[0] - ends[1]) / (2 * step)
        assert float((slope * way).sum()) == pytest.approx(measured, rel=2e-3, abs=2e-5)


def test_bad_input_is_named():
    u, v, y = batch(15), batch(16), labels()
    for make, message in (
        (lambda: JointCost("dot"), "latent"),
        (lambda: JointCost(prediction="l2"), "prediction"),
        (lambda: JointCost(lam=-1.0), "lam"),
        (lambda: JointTransport("dual"), "kind"),
        (lambda: JointTransport(reg=0.0), "reg"),
        (lambda: JointTransport("divergence"), "symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    broken = u[0].clone()
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="clean latent"):
        JointTransport("exact")((broken, u[1]), v, (y, y))
