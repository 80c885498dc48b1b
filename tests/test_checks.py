"""Checks of arguments: what counts as a number, and what each message says of what was found."""

from functools import partial

import numpy as np
import pytest
import torch

import wotlab
from wotlab import (
    InternalWassersteinBall,
    LinfBall,
    WassersteinBall,
    attacks,
    data,
    evaluate,
    gibbs,
    iwd,
    projections,
    transformations,
)
from wotlab._base import checks
from wotlab.iwd import PatchCost
from wotlab.plans import Moves, PotentialPlans
from wotlab.projections import projected_sinkhorn, unbalanced_sinkhorn
from wotlab.training import (
    GOT,
    PGDAT,
    TRADES,
    AdversarialTransport,
    JointTransport,
    Standard,
    WassersteinAT,
    fit,
)


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


X, Y, BALL = torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), LinfBall(0.1)
MODEL = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))


def fitted(**wrong):
    return fit(MODEL, (X, Y), epochs=1, progress=False, **wrong)


def sampled(**wrong):
    right = {"loss": lambda z: z.flatten(1).sum(1), "z": X, "lo": 0 * X, "hi": 0 * X + 1,
             "chain": gibbs.Chain(), "steps": 1}  # fmt: skip
    return gibbs.sample(**(right | wrong))


def curve(**wrong):
    y = MODEL(X).argmax(1)  # all stand before the attack
    right = {"model": MODEL, "x": X, "y": y, "attack": attacks.fgsm, "ball": BALL, "eps": [0.1]}
    return evaluate.accuracy_curve(**(right | wrong))


def doubts(**wrong):
    right = {"model": MODEL, "x": X, "y": Y, "attack": attacks.fgsm, "ball": BALL}
    return evaluate.sanity(**(right | wrong))


PARTIAL = r"attack must be a function, such as functools\.partial\(.*pgd, steps=20\); got"
WRONG_KINDS = [
    (
        lambda: fitted(defense=Standard),
        "defense must be an object .*got the class Standard",
    ),
    (lambda: fitted(defense=attacks.pgd), "defense must be an object .*got a function"),
    (lambda: fitted(schedule=0.1), r"schedule must be a function, such as lambda epoch:.*got 0\.1"),
    (
        lambda: fitted(optimizer=torch.optim.SGD(MODEL.parameters(), 0.1)),
        r"optimizer must be a function, such as lambda model: torch\.optim.*; got a SGD",
    ),
    (lambda: fitted(optimizer=torch.optim.SGD), "optimizer must be a function.*got the class SGD"),
    (lambda: fitted(optimizer=lambda model: None), "what optimizer returns must be an Optimizer"),
    (lambda: fitted(validate=(X, Y)), "validate must be a function, such as lambda model: "),
    (lambda: PGDAT(BALL, 0.1), "eps must be a function, such as lambda epoch:.*; got 0.1"),
    (lambda: TRADES(BALL, attack="pgd"), f"{PARTIAL} 'pgd'"),
    (
        lambda: PGDAT(BALL, attack=lambda *given: X).loss(MODEL, X, Y, Y),
        "what attack returns must be an AttackResult; got a Tensor",
    ),
    (lambda: WassersteinAT(WassersteinBall(0.1), features="3"), "features must be a Module"),
    (lambda: AdversarialTransport(BALL, chain="sign"), "chain must be a Chain; got 'sign'"),
    (lambda: AdversarialTransport(BALL, augment="flip"), "augment must be a function, such as"),
    (lambda: GOT(PGDAT), "inner must be PGDAT, TRADES or MART; got the class PGDAT"),
    (lambda: GOT(PGDAT(BALL), "exact"), "term must be a JointTransport; got 'exact'"),
    (lambda: GOT(PGDAT(BALL), potential=64), "potential must be a function.*got 64"),
    (lambda: JointTransport(cost="l2"), "cost must be a JointCost; got 'l2'"),
    (lambda: curve(eps=0.1), r"eps must be a list of budgets, such as \[0\.1\]; got 0\.1"),
    (lambda: curve(eps=torch.tensor(0.1)), r"eps must be a list of budgets.*got tensor\(0\.1"),
    (lambda: curve(attack="pgd"), f"{PARTIAL} 'pgd'"),
    (lambda: curve(attack=attacks.AttackResult), f"{PARTIAL} the class AttackResult"),
    (lambda: curve(attack=lambda *given: X), "what attack returns must be an AttackResult; got a "),
    (lambda: curve(ball=0.1), r"ball must be a threat model, such as LinfBall\(0.1\); got float"),
    (lambda: curve(x=0.1), r"images must be floating-point tensors in \[0, 1\]; got float"),
    (lambda: doubts(attack="pgd"), f"{PARTIAL} 'pgd'"),
    (lambda: doubts(others=[attacks.pgd]), r"others must be a dict; got a list"),
    (lambda: doubts(others={"square": "square"}), f"{PARTIAL} 'square'"),
    (lambda: doubts(ball=0.1), r"ball must be a threat model, such as LinfBall\(0.1\); got float"),
    (lambda: doubts(claim="most"), r"claim must lie in \[0, 1\]; got 'most'"),
    (
        lambda: evaluate.success_rate(MODEL, X, Y, torch.rand(99)),
        "done must be an AttackResult; got a Tensor",
    ),
    (lambda: evaluate.are_right(MODEL, X, Y, batch_size=0.5), "batch_size must be a positive"),
    (lambda: attacks.transfer(MODEL, X, Y, BALL, source=MODEL, attack="pgd"), f"{PARTIAL} 'pgd'"),
    (lambda: attacks.pgd(MODEL, X, Y, BALL, schedule=0.1), "schedule must be a function.*got 0.1"),
    (lambda: attacks.pgd(MODEL, X, Y, BALL, projection="x"), "projection must be a function"),
    (lambda: attacks.pgd(MODEL, X, Y, BALL, objective="ce"), "objective must make an Objective"),
    (lambda: attacks.pgd(MODEL, X, Y, BALL, generator=0), "generator must be a Generator; got 0"),
    (lambda: attacks.radius(MODEL, X, Y, generator=0), "generator must be a Generator; got 0"),
    (lambda: attacks.radius(MODEL, X, Y, BALL, momentum="x"), r"momentum must lie in \[0, 1\)"),
    (lambda: attacks.radius(MODEL, X, MODEL(X).argmin(1), batch_size="x"), "batch_size must be"),
    (lambda: attacks.transfer(MODEL, X, Y, BALL, source="x"), "source must be a Module"),
    (
        lambda: attacks.mirror_ascent(MODEL, X, Y, BALL),
        r"ball must be a WassersteinBall; got LinfBall\. For other balls use pgd$",
    ),
    (lambda: attacks.adef(MODEL, 0.1, Y, BALL), r"x must be a torch tensor \(B, C, H, W\)"),
    (lambda: projected_sinkhorn(X, X, 0.1, COST, warm="x"), "warm must be a dict; got 'x'"),
    (lambda: PotentialPlans(None, COST), "x must be a Tensor; got None"),
    (lambda: Moves("x", COST), "x must be a Tensor; got 'x'"),
    (lambda: doubts(far="x"), "far must be a finite number at least 0; got 'x'"),
    (lambda: fitted(seed=None), "seed must be an Integral; got None"),
    (lambda: fitted(workers=-1), "workers must be an integer of at least 0; got -1"),
    (lambda: attacks.eot(MODEL, X, Y, BALL, transform="shift"), "transform must be a function"),
    (lambda: attacks.langevin(MODEL, X, Y, BALL, chain="sign"), "chain must be a Chain"),
    (lambda: sampled(lo=0), r"lo must be a tensor that broadcasts .*torch\.zeros_like\(z\); got 0"),
    (lambda: sampled(hi=torch.ones(7)), r"hi must be a tensor that broadcasts .*got \(7,\)"),
    (lambda: sampled(z=0.5), r"z must be a Tensor; got 0\.5"),
    (lambda: sampled(loss=1.0), r"loss must be a function, such as lambda z: .*; got 1\.0"),
    (lambda: sampled(chain="sign"), "chain must be a Chain; got 'sign'"),
    (lambda: gibbs.soft_maximum(0.1, 1.0), r"losses must be a Tensor; got 0\.1"),
    (lambda: transformations.warp(X, 0.5), r"flow must be a Tensor; got 0\.5"),
    (lambda: transformations.translate(X, "far"), r"share must lie in \[0, 1\]; got 'far'"),
    (lambda: transformations.roughness(0.5), r"flow must be a Tensor; got 0\.5"),
    (lambda: doubts(x=0.1), r"x must be a torch tensor \(B, C, H, W\); got float"),
    (lambda: unbalanced_sinkhorn(X, X, 5), "ground_cost must be a GroundCost; got 5"),
    (lambda: iwd.project(X, X, 0.1, 3), "cost must be a PatchCost; got 3"),
    (lambda: iwd.project(0.1, X, 0.1, PatchCost()), r"x must be a Tensor; got 0\.1"),
    *(
        (lambda find=find: find(X, X, 3), "cost must be a PatchCost; got 3")
        for find in (iwd.exact, iwd.entropic, iwd.sliced, iwd.critic)
    ),
    (lambda: data.load(3), "name must be a str; got 3"),
]


COST, LOCAL = wotlab.GroundCost(3), WassersteinBall(0.1)
FLAGS = [
    *((partial(attack, MODEL, X, Y, LOCAL), "targeted") for attack in (
        attacks.fgsm, attacks.pgd, attacks.mirror_ascent, attacks.frank_wolfe, attacks.transport)),
    *((partial(attack, MODEL, X, Y, BALL), "targeted") for attack in (
        attacks.langevin, attacks.stadv, attacks.adef)),
    (partial(attacks.iwda, MODEL, X, Y, InternalWassersteinBall(0.1)), "targeted"),
    (partial(attacks.mirror_ascent, MODEL, X, Y, LOCAL), "early_stop"),
    (partial(attacks.frank_wolfe, MODEL, X, Y, LOCAL), "published"),
    (partial(attacks.langevin, MODEL, X, Y, BALL), "random_start"),
    *((partial(attacks.pgd, MODEL, X, Y, LOCAL), name) for name in ("repaired", "random_start")),
    *((partial(project, X, X, 0.1, COST), "bound") for project in (
        projections.constrained_sinkhorn, projections.exact_projection,
        projections.dual_projection)),
    (partial(projected_sinkhorn, X, X, 0.1, COST), "clamp"),
    (JointTransport, "match_labels"),
    (partial(GOT, PGDAT(BALL)), "hold"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "name"), FLAGS)
@pytest.mark.parametrize("value", [None, "no", -1, float("nan")])
def test_what_is_neither_true_nor_false_is_refused(call, name, value):
    with pytest.raises(ValueError, match=f"{name} must be True or False; got {value!r}"):
        call(**{name: value})


@pytest.mark.parametrize("value", [True, np.bool_(False), torch.tensor(True)])
def test_booleans_of_every_kind_are_flags(value):
    checks.flags(targeted=value)


@pytest.mark.parametrize(("call", "says"), WRONG_KINDS)
def test_what_is_of_another_kind_is_named(call, says):
    """The argument, what it must be, and what was found: no TypeError from within."""
    with pytest.raises(ValueError, match=says):
        call()
