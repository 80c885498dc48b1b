"""Whatever the images, the budget and the network: what attacks on plans return is as documented.

Run longer by `pytest --hypothesis-profile=long tests/test_attack_fuzz.py`.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wotlab import GroundCost, WassersteinBall, attacks, certify
from wotlab._base.networks import logits_of
from wotlab._base.precision import full_precision

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = max(settings().max_examples // 5, 1)
LIT = 400  # pixels that hold mass, at most: the exact solver takes as their square
FIXED = {"mirror-ascent": attacks.mirror_ascent, "frank-wolfe": attacks.frank_wolfe}
ALL = [*FIXED, "transport", "radius"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EDGE = 1e-5  # relative to the logits: a margin that rounding may turn


@dataclass
class Problem:
    """A network, images and labels, a ball, and the options of an attack."""

    model: nn.Module
    x: Tensor
    y: Tensor
    ball: WassersteinBall
    options: dict

    def logits(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(self.model, full_precision(z)).double()

    def losses(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The margin by which images are broken, or are not, and the loss that is climbed: (B,)."""
        logits = self.logits(z)
        own = logits.gather(1, self.y[:, None])[:, 0]
        others = logits.scatter(1, self.y[:, None], -torch.inf)
        sign = -1 if self.options.get("targeted") else 1
        margin = sign * (others.amax(1) - own)
        ce = sign * (others.logsumexp(1) - own)
        return margin, ce if self.options["loss"] == "ce" else margin


@st.composite
def networks(draw, shape: tuple[int, int, int], dtype: torch.dtype) -> nn.Module:
    c, h, w = shape
    classes = draw(st.integers(2, 4))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 1000)))
        bend = draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.Identity]))
        parts = [nn.Conv2d(c, 3, 3, padding=1), bend(), nn.Flatten(), nn.Linear(3 * h * w, classes)]
        model = nn.Sequential(*parts).to(dtype)
    scale = 10.0 ** draw(st.integers(-3, 4))
    with torch.no_grad():
        model[-1].weight.mul_(scale)
        model[-1].bias.mul_(scale * draw(st.sampled_from([0, 1])))
    return model


@st.composite
def image(draw, shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    x = torch.rand(shape, generator=generator, dtype=torch.double)
    kind = draw(st.sampled_from(["grey", "sparse", "one", "black", "full", "some full", "faint"]))
    if kind in ("full", "some full"):
        x[x > (0.5 if kind == "some full" else 0)] = 1
    if kind == "faint":
        x *= 1e-5
    lit = {"black": 0, "one": 1, "sparse": max(x.numel() // 10, 1)}.get(kind, LIT)
    x.view(-1)[torch.randperm(x.numel(), generator=generator)[min(lit, LIT) :]] = 0
    return x


@st.composite
def problems(draw, attack: str, double: bool = False) -> Problem:
    longest = draw(st.sampled_from([6, 12, 40]))
    side = st.integers(1, longest)
    shape = draw(st.integers(1, 4)), draw(side), draw(side)
    dtype = torch.double if double else draw(st.sampled_from(DTYPES))
    model = draw(networks(shape, torch.double if double else draw(st.sampled_from(DTYPES[2:]))))
    x = torch.stack(draw(st.lists(image(shape), min_size=1, max_size=3))).to(dtype)
    with torch.no_grad():
        logits = logits_of(model, full_precision(x))
    some = draw(st.lists(st.integers(0, 1), min_size=len(x), max_size=len(x)))
    y = (logits.argmax(1) + torch.tensor(some)) % logits.shape[1]  # as it reads them, or not
    widest = st.integers(0, 6).map(lambda k: 2 * k + 1)
    window = draw(widest | st.none() if longest <= 12 else widest)
    cost = GroundCost(window, draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2])))
    eps = draw(st.sampled_from([1e-6, 100.0]) | st.floats(-6, 2).map(lambda e: 10.0**e))
    options = {"steps": draw(st.integers(1, 6)), "batch_size": draw(st.integers(1, 3))}
    options["loss"] = draw(st.sampled_from(["ce", "margin"]))
    if attack in FIXED:
        options["early_stop"] = draw(st.booleans())
    else:
        options["restarts"] = draw(st.integers(0, 1 if double else 3))
        options["window"], options["patience"] = window, draw(st.integers(1, 5))
    if attack != "radius":
        options["targeted"] = draw(st.booleans())
    return Problem(model, x, y, WassersteinBall(eps, cost), options)


def run(attack: str, problem: Problem, some: slice = slice(None)):
    """The attack on some of the images; noise is the same in each call."""
    given = problem.model, problem.x[some], problem.y[some], problem.ball
    if attack in FIXED:
        return FIXED[attack](*given, **problem.options)
    noise = torch.Generator().manual_seed(0)
    return getattr(attacks, attack)(*given, generator=noise, **problem.options)


@pytest.mark.parametrize("attack", ALL)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_what_is_returned_is_feasible_and_honest(attack, data):
    problem = data.draw(problems(attack))
    x, ball = full_precision(problem.x), problem.ball
    done = run(attack, problem)
    z = done.x_adv
    assert z.dtype == x.dtype and bool(z.isfinite().all() & (z >= 0).all() & (z <= 1).all())
    spent, success = (done.eps, done.eps.isfinite()) if attack == "radius" else (
        done.cost, done.success)  # fmt: skip
    within = spent <= ball.eps * (1 + 1e-5)
    assert bool((spent >= 0).all() & (within | (~success & (attack == "radius"))).all())
    seen = certify(x, z, ball)
    rounding = torch.finfo(x.dtype).eps
    if ball.ground_cost.p > 1:  # what is rounded may have to go far
        rounding *= float(replace(ball.ground_cost, window=None).costs(*x.shape[2:]).max())
    assert bool((seen.cost <= torch.where(success, spent, ball.eps) * (1 + 1e-4) + rounding).all())
    assert bool((seen.mass_error <= 1e-6).all()) and float(seen.box_error.max()) == 0
    (before, start), (after, end) = problem.losses(x), problem.losses(z)
    edge = EDGE * problem.logits(x).abs().amax(1)
    clear, broken = after.abs() > edge, before > edge
    assert torch.equal(success[clear], after[clear] > 0)  # what is claimed, the network says
    assert bool(success[broken].all())
    if problem.options.get("early_stop", True):  # what is broken from the start takes no step
        assert torch.equal(z[broken], x[broken])
    if attack == "radius":
        assert torch.equal(z[~success], x[~success]) and bool((spent[broken] == 0).all())
    else:
        fell = success & ~done.misread
        assert bool((fell | (end >= start - edge)).all())


@pytest.mark.parametrize("attack", ALL)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_a_batch_is_a_loop(attack, data):
    """In double precision; runs from noise aside, for which each call would draw anew."""
    problem = data.draw(problems(attack, double=True))
    whole = run(attack, problem)
    alone = [run(attack, problem, slice(k, k + 1)) for k in range(len(problem.x))]
    z = torch.cat([one.x_adv for one in alone])
    assert torch.allclose(whole.x_adv, z, atol=1e-6)
    # the cost is that of the plan, and where images tie to rounding one of another plan is as good
    name = "eps" if attack == "radius" else "success"
    mine, theirs = getattr(whole, name), torch.cat([getattr(one, name) for one in alone])
    assert torch.allclose(mine.double(), theirs.double(), rtol=1e-5, atol=1e-7)
