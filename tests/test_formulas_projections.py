"""Projections stopped early, their multipliers and the numbers that they use unless told others."""

from itertools import pairwise

import pytest
import torch

from wotlab import GroundCost, TransportPlan, WassersteinBall
from wotlab.projections import (
    constrained_sinkhorn,
    dual_projection,
    exact_projection,
    projected_sinkhorn,
    unbalanced_sinkhorn,
)

COST = GroundCost(3)


pytestmark = pytest.mark.usefixtures("one_thread")


def pair(*shape, seed=0, step=0.5):
    """Images with a black corner, and stepped images that leave [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator, dtype=torch.double)
    w = x + step * torch.randn(*shape, generator=generator, dtype=torch.double)
    x[..., 0, :2] = 0
    return x, w


# Stopped early


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("most, step", [(1, 1.0), (2, 1.0), (7, 1.0), (1, 1e6)])
def test_the_dual_projection_keeps_rows_and_budget_wherever_it_stops(most, step, bound):
    """To the last bit, whatever the search for psi and huge steps leave of rounding."""
    x, w = pair(64, 1, 5, 5, step=step)
    eps = torch.linspace(0.001, 0.6, 64, dtype=torch.double)
    found = dual_projection(x, w, eps, COST, bound=bound, max_iter=most)
    assert (found.plan.cost() <= eps * (1 + 1e-13)).all()
    assert torch.allclose(found.plan.source(), x, rtol=1e-14, atol=0)
    assert (found.plan.mass >= 0).all()
    made = found.plan.image()
    assert torch.allclose(found.image, made.clamp(max=1) if bound else made, atol=1e-14)
    assert (found.iterations == most)[~found.converged].all()
    assert found.converged.all() or bound  # without the bound one step is exact
    if not bound:
        assert (found.iterations == 1).all() and (found.duals["phi"] == 0).all()


def test_the_exact_projection_keeps_rows_and_budget():
    """To the last bit, not to the solver's tolerance."""
    x, w = pair(12, 1, 4, 4, seed=1, step=1.0)
    eps = torch.linspace(0.01, 0.4, 12, dtype=torch.double)
    found = exact_projection(x, w, eps, COST)
    assert (found.duals["psi"] > 1e-3).all()  # all budgets bind
    assert (found.plan.cost() <= eps * (1 + 1e-13)).all()
    assert torch.allclose(found.plan.cost(), eps, rtol=1e-6)
    assert torch.allclose(found.plan.source(), x, rtol=1e-14, atol=0)
    assert (found.plan.mass >= 0).all() and (found.iterations > 1).all()
    assert torch.allclose(found.image, found.plan.image(), atol=1e-7)
    assert found.image.min() >= 0 and found.image.max() <= 1


def test_the_exact_projection_without_the_bound_exceeds_one():
    x, w = pair(3, 1, 4, 4, seed=2, step=1.0)
    free = exact_projection(x, w, 0.5, COST, bound=False)
    kept = exact_projection(x, w, 0.5, COST)
    assert (free.image.amax((1, 2, 3)) > 1.01).all() and kept.image.max() <= 1
    nearer = (free.image - w).square().sum((1, 2, 3)) < (kept.image - w).square().sum((1, 2, 3))
    assert nearer.all()
    assert torch.allclose(free.image, free.plan.image(), atol=1e-14)  # no clamp at all


@pytest.mark.parametrize(
    "project", [constrained_sinkhorn, projected_sinkhorn, dual_projection, exact_projection]
)
def test_a_black_image_is_not_looked_at(project):
    """Its budget counts as 0: no iteration, no multiplier, converged; the other is as if alone."""
    x, w = pair(2, 1, 4, 4, seed=10)
    x[0] = 0
    both, other = project(x, w, 0.3, COST), project(x[1:], w[1:], 0.3, COST)
    assert (both.image[0] == 0).all() and (both.plan.mass[0] == 0).all()
    assert both.iterations[0] == 0 and both.converged.all() and both.iterations[1] > 0
    assert torch.allclose(both.image[1:], other.image)
    assert all(value.isfinite().all() for value in both.duals.values())
    black = project(x[:1], w[:1], torch.tensor([0.3]), COST)
    assert (black.image == 0).all() and black.iterations.tolist() == [0]


# The multipliers: what the optimum's conditions say of them


@pytest.mark.parametrize("bound", [False, True])
def test_the_entropic_projections_multipliers_meet_its_conditions(bound):
    """In units of mass: z = w - (beta + phi) / lam, phi only at the cap, psi where eps binds."""
    x, w = pair(4, 2, 5, 5, seed=3, step=0.7)
    eps = torch.tensor([0.05, 0.2, 0.4, 50.0], dtype=torch.double)
    lam = 300.0
    find = {"reg": 1 / lam, "tol": 1e-8, "max_iter": 20_000, "bound": bound}
    found = constrained_sinkhorn(x, w, eps, COST, **find)
    assert found.converged.all()
    mass = x.sum((1, 2, 3), keepdim=True)
    z, goal, cap = found.image / mass, w / mass, 1 / mass
    beta, phi, psi = (found.duals[name] for name in ("beta", "phi", "psi"))
    assert (phi >= 0).all() and (psi >= 0).all()
    at_cap = z >= cap * (1 - 1e-12)
    assert (phi[~at_cap] == 0).all()
    assert bool((phi > 0.1).any()) is bound
    lit = z > 1e-12
    slope = lam * (goal - z)
    assert torch.allclose(slope[lit], (beta + phi)[lit], atol=1e-6 * lam)
    # the plan is that of the potentials: rows x softmax(beta - psi C), no cost beyond eps
    costs = COST.costs(5, 5, dtype=torch.double)[:, None, None]
    score = COST.gather(beta) - psi[:, None, None, None, None] * costs
    score = score.masked_fill(~COST.inside(5, 5), -torch.inf)
    plan = x[:, :, None] * score.softmax(2)
    assert torch.allclose(found.plan.mass, plan, atol=1e-6)
    assert (psi[:3] > 0.1).all() and psi[3] == 0
    assert torch.allclose(found.plan.cost()[:3], eps[:3], rtol=1e-6)
    assert found.plan.cost()[3] < 50


def test_the_dual_projections_multipliers_meet_its_conditions():
    """Rows are G - psi C - phi on the simplex, phi at full pixels alone, psi where eps binds."""
    x, w = pair(4, 1, 5, 5, seed=4, step=0.7)
    eps = torch.tensor([0.05, 0.2, 0.4, 50.0], dtype=torch.double)
    found = dual_projection(x, w, eps, COST, tol=1e-9, max_iter=20_000)
    assert found.converged.all()
    mass = x.sum((1, 2, 3), keepdim=True)
    phi, psi = found.duals["phi"], found.duals["psi"]
    image = found.plan.image()
    assert (phi >= 0).all() and (phi[image < 1 - 1e-4] < 1e-7).all() and (phi > 1e-3).any()
    assert (psi[:3] > 0).all() and psi[3] == 0 and found.plan.cost()[3] < 50
    assert torch.allclose(found.plan.cost()[:3], eps[:3], rtol=1e-8)
    plan = found.plan.mass / mass[:, :, None]
    stays = (COST.offsets(5, 5) == 0).all(1)[:, None, None]
    goal = COST.gather((w - x) / mass) + stays * (x / mass)[:, :, None]
    costs = COST.costs(5, 5, dtype=torch.double)[:, None, None]
    score = goal - psi[:, None, None, None, None] * costs - COST.gather(phi)
    score = score.masked_fill(~COST.inside(5, 5), -torch.inf)
    off = (score - plan).movedim(2, 0)[:, x > 0]  # the row's one threshold where mass goes
    used = plan.movedim(2, 0)[:, x > 0] > 1e-12
    level = torch.where(used, off, torch.nan).nanmedian(0).values
    assert torch.where(used, off - level, 0).abs().max() < 1e-9
    assert torch.where(used, 0, off - level).clamp_min(0).max() < 1e-9


# Numbers that are taken unless others are given: those of the papers and of the documentation

NUMBERS = {
    constrained_sinkhorn: {"reg": 1e-3, "tol": 0.01, "rule": "plan", "bound": True},
    projected_sinkhorn: {"reg": 1e-3, "tol": 1e-4, "clamp": False},
    dual_projection: {"tol": 1e-6, "bound": True},
    unbalanced_sinkhorn: {"variant": "corrected", "gamma": 0.5, "reg": 0.001, "tau": 0.01},
}


@pytest.mark.parametrize("project", NUMBERS, ids=lambda f: f.__name__)
def test_numbers_that_are_not_given_are_the_papers(project):
    """The same result with all of them written out, another one with any of them changed."""
    x, w = pair(2, 1, 5, 5, seed=5, step=0.8)
    given = (x, w, COST) if project is unbalanced_sinkhorn else (x, w, 0.3, COST)
    plain, numbers = project(*given), NUMBERS[project]

    def same(other):
        return torch.equal(other.image, plain.image) and torch.equal(
            other.iterations, plain.iterations
        )

    assert same(project(*given, **numbers))
    other = {"rule": "dual", "variant": "printed", "bound": False, "clamp": True}
    for name, value in numbers.items():
        for changed in [other[name]] if name in other else [value / 2, 2 * value]:
            assert not same(project(*given, **numbers | {name: changed})), (name, changed)


@pytest.mark.parametrize("variant", ["printed", "corrected", "l2"])
def test_turns_of_the_unbalanced_projection(variant):
    """The paper's ten where its iteration does not converge; else as many as it takes."""
    x, w = pair(1, 1, 3, 3, seed=7)
    found = unbalanced_sinkhorn(x, w, COST, variant=variant, tau=0.1, reg=0.001)
    assert (found.iterations.tolist() == [10]) is (variant == "printed")
    assert bool(found.converged.all()) is (variant != "printed")
    told = unbalanced_sinkhorn(x, w, COST, variant=variant, tol=1e-300, max_iter=3)
    assert told.iterations.tolist() == [3] and not told.converged.any()


# A warm start


def test_a_warm_start_takes_both_multipliers():
    """From those of the optimum one iteration is enough; without either of them it is not."""
    x, w = pair(3, 1, 5, 5, seed=8, step=0.8)
    first = constrained_sinkhorn(x, w, 0.1, COST, tol=1e-6, max_iter=9000)
    again = constrained_sinkhorn(x, w, 0.1, COST, tol=1e-5, warm=first.duals)
    assert (again.iterations == 1).all()
    assert torch.allclose(again.duals["psi"], first.duals["psi"], rtol=1e-4)
    blank = first.duals | {"beta": torch.zeros_like(x)}
    other = constrained_sinkhorn(x, w, 0.1, COST, tol=1e-5, warm=blank)
    assert (other.iterations > 1).all()


def test_a_warm_multiplier_is_where_the_search_for_it_begins():
    """The right one is kept to the bit, and one below 0 counts as 0."""
    x, w = pair(2, 1, 5, 5, seed=9, step=0.8)
    first = constrained_sinkhorn(x, w, 0.1, COST, max_iter=3, tol=1e-9)
    kept = {name: value.clone() for name, value in first.duals.items()}
    constrained_sinkhorn(x, w, 0.1, COST, tol=1e-6, warm=first.duals)
    assert all(torch.equal(kept[name], first.duals[name]) for name in kept)  # ours, not changed
    again = constrained_sinkhorn(x, w, 0.1, COST, max_iter=1, tol=1e-9, warm=first.duals)
    assert torch.equal(again.duals["psi"], first.duals["psi"])
    below = {"beta": first.duals["beta"], "psi": -first.duals["psi"]}
    zero = {"beta": first.duals["beta"], "psi": torch.zeros_like(first.duals["psi"])}
    found = [constrained_sinkhorn(x, w, 0.1, COST, tol=1e-6, warm=start) for start in (below, zero)]
    assert torch.equal(found[0].image, found[1].image)


@pytest.mark.parametrize("name", ["beta", "psi"])
def test_multipliers_of_other_images_are_refused(name):
    x, w = pair(2, 1, 4, 4, seed=11)
    duals = constrained_sinkhorn(x, w, 0.1, COST, max_iter=1).duals
    for bad in (duals[name][:1], duals[name][..., None], duals[name].tolist(), None):
        with pytest.raises(ValueError, match=f"warm must hold '{name}' of shape"):
            constrained_sinkhorn(x, w, 0.1, COST, warm=duals | {name: bad})


def test_a_repair_refuses_images_out_of_range():
    x, _ = pair(2, 1, 4, 4, seed=12)
    ball = WassersteinBall(0.1, COST)
    plan = TransportPlan.identity(x, COST)
    assert torch.allclose(ball.repair(x, plan).image(), x)
    for bad in (2 * x, x - 1, x / 0):
        with pytest.raises(ValueError, match="x must"):
            ball.repair(bad, plan)


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-5])
def test_the_dual_rule_stops_where_the_dual_stands_still(tol):
    """lam/2 |w - z|^2 + <beta, z> + sum x log(x / Z) - psi eps, by the multipliers of a turn."""
    x, w = pair(1, 1, 4, 4, seed=13, step=0.6)
    lam, eps = 50.0, 0.1
    mass = x.sum()
    costs = COST.costs(4, 4, dtype=torch.double)[:, None, None]

    def dual(turn):
        found = projected_sinkhorn(x, w, eps, COST, reg=1 / lam, tol=tol, max_iter=turn)
        beta, psi = found.duals["beta"], found.duals["psi"]
        score = (COST.gather(beta) - psi * costs).masked_fill(~COST.inside(4, 4), -torch.inf)
        start = torch.where(x > 0, x / mass * ((x / mass).log() - score.logsumexp(2)), 0).sum()
        z = found.image / mass
        ends = lam / 2 * (w / mass - z).square() + beta * z
        return float(ends.sum() + start - psi * eps)

    last = int(projected_sinkhorn(x, w, eps, COST, reg=1 / lam, tol=tol).iterations)
    values = [dual(turn) for turn in range(1, last + 1)]
    still = [abs(b - a) <= tol * abs(b) for a, b in pairwise(values)]
    assert last > 2 and still == [False] * (last - 2) + [True]
