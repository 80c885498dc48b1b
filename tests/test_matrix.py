"""Radii of every network under every threat, and the tables that follow from them."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wotlab import InternalWassersteinBall, L2Ball, LinfBall, attacks, evaluate, transformations
from wotlab.evaluate import Field, Matrix, Threat


def linear(seed=0):
    """Two classes, one hyperplane through grey images, and images around it with their labels."""
    one = torch.Generator().manual_seed(seed)
    w = torch.randn(16, generator=one).double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2).double())
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w, -w]) / 2)
        model[1].bias.copy_(torch.stack([-w.sum() / 2, w.sum() / 2]) / 2)
    x = 0.5 + 0.2 * (torch.rand(6, 1, 4, 4, generator=one).double() - 0.5)
    margin = (x.flatten(1) - 0.5) @ w  # logit 0 minus logit 1
    return model, x, (margin < 0).long(), margin.abs(), w


@pytest.mark.parametrize(("ball", "dual"), [(LinfBall(1.0), 1), (L2Ball(2.0), 2)])
def test_nearest_finds_the_distance_to_a_hyperplane(ball, dual):
    model, x, y, margin, w = linear()
    radii = Threat.nearest(ball).find(model, x, y)
    exact = margin / w.norm(p=dual)
    assert bool((radii >= exact * (1 - 1e-9)).all())
    torch.testing.assert_close(radii, exact, rtol=0.02, atol=0)


def test_a_grid_gives_the_next_budget_above_the_distance():
    model, x, y, margin, w = linear()
    exact = margin / w.norm(p=1)
    eps = (0.2, 0.005, 0.02, 0.05)
    pgd = partial(attacks.pgd, steps=20)
    radii = Threat.on_grid(pgd, LinfBall(0), eps).find(model, x, y)
    wanted = [min((e for e in eps if e >= far), default=math.inf) for far in exact.tolist()]
    assert radii.tolist() == wanted


def test_misread_images_have_radius_0_under_every_kind_of_threat():
    model, x, y, _, _ = linear()
    y[0] = 1 - y[0]
    far = InternalWassersteinBall(9.0)
    kinds = [
        Threat.nearest(LinfBall(1.0)),
        Threat.on_grid(partial(attacks.pgd, steps=20), LinfBall(0), (0.1, 1.0)),
        Threat.once(partial(attacks.pgd, steps=20), LinfBall(1.0)),
        Threat.once(lambda *a: attacks.pgd(*a, steps=5), far),
        Threat.natural(lambda x, s: [1 - x], (1.0,)),
    ]
    for kind in kinds:
        radii = kind.find(model, x, y)
        assert radii[0] == 0 and bool((radii[1:] > 0).all())


def test_once_measures_how_far_an_attack_went():
    model, x, y, margin, w = linear()
    attack, ball = partial(attacks.pgd, steps=20), LinfBall(float(margin.median() / w.norm(p=1)))
    done = attack(model, x, y, ball)
    assert 0 < int(done.success.sum()) < len(x)
    radii = Threat.once(attack, ball).find(model, x, y)
    far = (done.x_adv - x).abs().amax((1, 2, 3))
    assert torch.equal(radii, torch.where(done.success, far, torch.inf))


def test_natural_changes_count_from_the_smallest_size_that_breaks():
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, 2).double())
    with torch.no_grad():  # class 1 where the middle pixel is above 1/2
        model[1].weight.zero_()
        model[1].weight[1, 24] = 1.0
        model[1].bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.zeros(2, 1, 7, 7, dtype=torch.float64)
    x[0, 0, 3, 3] = 1.0
    x[1] = 1.0
    y = torch.ones(2, dtype=torch.long)
    threat = Threat.natural(lambda x, s: [x, transformations.blur(x, s)], (1.0, 0.3, 0.6))
    middle = [float(transformations.blur(x, s)[0, 0, 3, 3]) for s in (0.3, 0.6)]
    assert middle[0] > 0.5 > middle[1]
    assert threat.find(model, x, y).tolist() == [0.6, math.inf]


def test_the_least_radius_of_several_searches_counts():
    model, x, y, _, _ = linear()
    lists = torch.tensor([[1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]])
    one, two = (Threat(lambda m, x, y, k=k: lists[k]) for k in (0, 1))
    assert one.or_by(two).find(model, x, y).tolist() == [1, 2, 3, 3, 2, 1]


def test_another_attack_is_tried_on_what_stands_at_its_budgets():
    model, x, y, margin, w = linear()
    exact = (margin / w.norm(p=1)).tolist()
    asked = []

    def pgd(m, x, y, ball):
        asked.append((ball.eps, len(x)))
        return attacks.pgd(m, x, y, ball, steps=20)

    ranked = sorted(exact)
    low, high = (ranked[1] + ranked[2]) / 2, (ranked[3] + ranked[4]) / 2
    start = torch.full((6,), math.inf, dtype=torch.double)
    start[exact.index(ranked[0])] = ranked[0]  # known, and below both budgets
    blind = Threat(lambda m, x, y: start.clone(), "eps", attacks.pgd, LinfBall(0))
    radii = blind.also_by(pgd, high, low).find(model, x, y)
    assert asked == [(low, 5), (high, 4)]
    found = {ranked[0]: ranked[0], ranked[1]: low, ranked[2]: high, ranked[3]: high}
    assert radii.tolist() == [found.get(far, math.inf) for far in exact]
    with pytest.raises(ValueError, match="needs the ball"):
        Threat(lambda m, x, y: y).also_by(pgd, 0.1)


radii = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, math.inf]), min_size=1, max_size=9)


@given(radii, st.sampled_from([0.0, 0.1, 0.15, 0.5, 2.0]))
def test_accuracy_and_half_of_any_radii(listed, eps):
    field = Field(torch.tensor(listed, dtype=torch.double))
    assert field.accuracy(eps).count == sum(r > eps for r in listed)
    assert field.accuracy(field.half).value <= 0.5
    assert all(field.accuracy(r).value > 0.5 for r in listed if r < field.half)


def two():
    """Two networks, two threats, four images."""
    fields = {
        "a": {"u": [0.0, 1.0, 2.0, 3.0], "v": [0.0, 9.0, 1.0, 9.0]},
        "b": {"u": [2.0, 2.0, 2.0, 2.0], "v": [1.0, 1.0, 1.0, math.inf]},
    }
    made = {n: {t: Field(torch.tensor(r)) for t, r in row.items()} for n, row in fields.items()}
    return Matrix(made, {"u": "", "v": ""})


def test_union_competitiveness_and_steepest_by_hand():
    matrix = two()
    assert matrix.union("a", {"u": 1.5, "v": 2.0}).count == 1  # the last image
    assert matrix.union("b", {"u": 1.5, "v": 2.0}).count == 1
    assert matrix.half("a") == {"u": 1.0, "v": 1.0}
    # u: at 1 a has 2 and b 4 of 4, at 2.5 a has 1 and b none; v: at 1 a has 2 and b 1
    # u at 5: nobody stands, left out
    ratios = matrix.competitiveness({"u": (1.0, 2.5, 5.0), "v": (1.0,)})
    assert ratios["a"] == pytest.approx(((50 + 100 + 100) / 3, 50))
    assert ratios["b"] == pytest.approx(((100 + 0 + 50) / 3, 0))
    # where the best keeps half: without u at 2.5
    ratios = matrix.competitiveness({"u": (1.0, 2.5, 5.0), "v": (1.0,)}, least=0.5)
    assert ratios == {"a": (75, 50), "b": (75, 50)}
    # a: u falls 3, 2, 1 of 4 at 0, 1, 2.5; v 3, 2. b: u 4, 4, 0; v 4, 1
    assert matrix.steepest({"u": (2.5, 1.0), "v": (1.0,)}) == {"a": 0.25, "b": 1.0}


def test_a_killed_call_goes_on_and_measures_nothing_twice(tmp_path):
    model, x, y, _, _ = linear()
    asked = []

    def find(m, x, y, name):
        asked.append(name)
        if name == "second" and len(asked) == 2:
            raise KeyboardInterrupt
        return attacks.radius(m, x, y, LinfBall(1.0), restarts=0).eps

    threats = {name: Threat(partial(find, name=name)) for name in ("first", "second")}
    nets = {"net": model}
    with pytest.raises(KeyboardInterrupt):
        evaluate.matrix(nets, threats, (x, y), folder=tmp_path)
    done = evaluate.matrix(nets, threats, (x, y), folder=tmp_path)
    assert asked == ["first", "second", "second"]
    again = evaluate.matrix(nets, threats, (x, y), folder=tmp_path)
    assert len(asked) == 3
    for name in threats:
        one, two = done.fields["net"][name], again.fields["net"][name]
        assert torch.equal(one.radii, two.radii)
        assert (one.forward, one.backward, one.seconds) == (two.forward, two.backward, two.seconds)


def test_a_folder_of_other_images_weights_or_attacks_is_refused(tmp_path):
    model, x, y, _, _ = linear()
    other = linear(seed=1)[0]
    pgd = partial(attacks.pgd, steps=2)
    threat = Threat.on_grid(pgd, LinfBall(0), (0.1,))
    evaluate.matrix({"net": model}, {"t": threat}, (x, y), folder=tmp_path)
    longer = Threat.on_grid(partial(attacks.pgd, steps=3), LinfBall(0), (0.1,))
    for nets, threats, images, word in (
        ({"net": model}, {"t": threat}, (x.flip(0), y.flip(0)), "images"),
        ({"net": other}, {"t": threat}, (x, y), "network"),
        ({"net": model}, {"t": longer}, (x, y), "steps"),
    ):
        with pytest.raises(ValueError, match=f"folder holds t.json .*{word}"):
            evaluate.matrix(nets, threats, images, folder=tmp_path)


def test_what_a_search_asks_of_the_network_is_counted():
    model, x, y, _, _ = linear()
    attack = partial(attacks.pgd, steps=7, early_stop=False)
    done = attack(model, x, y, LinfBall(0.01))
    threat = Threat.once(attack, LinfBall(0.01))
    field = evaluate.matrix({"net": model}, {"t": threat}, (x, y)).fields["net"]["t"]
    assert field.backward == done.backward == 7 * len(x)
    assert field.forward == done.forward + len(x)  # and once to see who is misread


class Rounded(nn.Module):
    """Steps where a gradient should be."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((20 * x).round() / 20)


def test_a_network_that_hides_its_gradient_is_doubted():
    model, x, y, _, _ = linear()
    half = Threat(lambda m, x, y: 0.2 * torch.ones(len(x)), "eps", attacks.pgd, LinfBall(0))
    rows = evaluate.matrix({"flat": Rounded(model), "open": model}, {"t": half}, (x, y)).fields
    checks = {name: {doubt.check for doubt in row["t"].doubts} for name, row in rows.items()}
    assert "zero gradients" in checks["flat"] and "zero gradients" not in checks["open"]
    fails = Threat.on_grid(attacks.pgd, LinfBall(0), [0.005, 0.01])
    (row,) = evaluate.matrix({"flat": Rounded(model)}, {"t": fails}, (x, y)).fields.values()
    assert row["t"].half == math.inf
    assert "zero gradients" in {doubt.check for doubt in row["t"].doubts}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"networks": {}}, "networks"),
        ({"networks": {"a/b": None}}, "networks"),
        ({"threats": {"t": attacks.pgd}}, "threats"),
        ({"threats": {".": None}}, "threats"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_named(change, word):
    model, x, y, _, _ = linear()
    good = {"networks": {"net": model}, "threats": {"t": Threat.nearest(LinfBall(1.0))}}
    with pytest.raises(ValueError, match=word):
        evaluate.matrix(images=(x, y), **good | change)


def test_what_is_no_radius_is_refused():
    model, x, y, _, _ = linear()
    for wrong in (lambda m, x, y: -torch.ones(len(x)), lambda m, x, y: torch.ones(2)):
        with pytest.raises(ValueError, match="find must return 6 radii"):
            evaluate.matrix({"net": model}, {"t": Threat(wrong)}, (x, y))


def test_an_attack_without_its_ball_and_budgets_of_unknown_threats_are_refused():
    with pytest.raises(ValueError, match="ball must be given where attack is"):
        Threat(lambda m, x, y: y, attack=attacks.pgd)
    matrix = two()
    for call in (matrix.accuracy, partial(matrix.union, "a"), matrix.competitiveness):
        with pytest.raises(ValueError, match=r"budgets must be given by threats .* u, v; got w"):
            call({"w": (1.0,)})
        with pytest.raises(ValueError, match="got none"):
            call({})
    with pytest.raises(ValueError, match="these leave none"):
        matrix.competitiveness({"u": (9.0,)})
    with pytest.raises(ValueError, match="least"):
        matrix.competitiveness({"u": (1.0,)}, least=50)
