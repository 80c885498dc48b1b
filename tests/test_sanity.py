"""Claims of robustness: an honest one raises no doubt, and each dishonest one is caught."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_evaluate import LINF, Tilted, greys
from torch import nn

from wotlab import InternalWassersteinBall, L2Ball, LinfBall, WassersteinBall, attacks, evaluate


class Leaning(nn.Module):
    """Class 1 where the left half is brighter than the right: moving mass changes that."""

    def forward(self, x):
        score = 20 * (x[..., :2].mean((1, 2, 3)) - x[..., 2:].mean((1, 2, 3)))
        return torch.stack([-score, score], 1)


def halves(count):
    x = 0.3 + 0.4 * torch.rand(count, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    x = x.repeat_interleave(2, 3).expand(-1, 1, 4, 4).clone()
    return x, (x[:, 0, 0, 0] > x[:, 0, 0, 3]).long()


@pytest.mark.parametrize("ball", [LINF, LinfBall(0.5), L2Ball(0.4)])
def test_an_honest_evaluation_raises_no_doubt(ball):
    assert evaluate.sanity(Tilted(), *greys(), attacks.pgd, ball) == []


@pytest.mark.parametrize(
    ("attack", "ball"),
    [
        (attacks.pgd, LINF),
        (attacks.pgd, L2Ball(0.4)),
        (partial(attacks.mirror_ascent, steps=40), WassersteinBall(0.1)),
        (attacks.pgd, InternalWassersteinBall(0.2)),
    ],
)
def test_an_honest_evaluation_of_moved_mass_raises_no_doubt(attack, ball):
    x, y = halves(20)
    assert 0 < attack(Leaning(), x, y, ball).success.sum() < 20  # some stand: did they move?
    assert evaluate.sanity(Leaning(), x, y, attack, ball) == []


def checks(model, attack, ball=LINF, **options):
    x, y = greys()
    return [d.check for d in evaluate.sanity(model, x, y, attack, ball, **options)]


def test_each_dishonest_one_is_caught():
    timid = partial(attacks.pgd, steps=5, step_size=0.005)
    assert "short steps" in checks(Tilted(), timid)
    assert "not to chance" in checks(Tilted(), timid)
    assert "grey image" in checks(Tilted(), timid, LinfBall(0.5))
    assert checks(Tilted(), attacks.pgd, LinfBall(0.6), claim=0.8) == ["claim", "grey image"]
    assert checks(Tilted(), attacks.pgd, claim=0.99) == ["claim"]
    assert checks(nn.Sequential(Tilted(), nn.Softmax(1)), attacks.pgd) == ["probabilities"]
    noisy = type("Noisy", (Tilted,), {
        "forward": lambda self, x: Tilted.forward(self, x + 1e-3 * torch.randn_like(x))
    })  # fmt: skip
    assert "random model" in checks(noisy(), attacks.pgd)
    stairs = type("Stairs", (Tilted,), {
        "forward": lambda self, x: Tilted.forward(self, (10 * x).round() / 10) + 0 * x.sum()
    })  # fmt: skip
    seen = checks(stairs(), attacks.pgd)
    assert "zero gradients" in seen
    sure = type("Sure", (Tilted,), {"forward": lambda self, x: 1e3 * Tilted.forward(self, x)})
    (doubt,) = [d for d in evaluate.sanity(sure(), *greys(), attacks.pgd, LINF)
                if d.check == "zero gradients"]  # fmt: skip
    assert "rounds to 1" in doubt.says and str(doubt).startswith("zero gradients: ")


def test_a_loss_is_not_flat_where_the_nearest_rival_alone_stands_still():
    """A third class moves, and with it the loss that attacks climb, but not the margin."""

    class Third(nn.Module):
        def forward(self, z):
            score = z.mean((1, 2, 3)) - 5
            return torch.stack([0 * score + 2, 0 * score + 1, score], 1)

    x, y = greys()
    seen = evaluate.sanity(Third(), x, 0 * y, pretended(0), LINF)
    assert "zero gradients" not in [doubt.check for doubt in seen]


def test_an_attack_without_gradients_that_is_stronger_is_a_doubt():
    timid = partial(attacks.pgd, steps=5, step_size=0.005)
    assert "black box" in checks(Tilted(), timid, others={"pgd": attacks.pgd})
    assert "black box" not in checks(Tilted(), attacks.pgd, others={"fgsm": attacks.fgsm})
    with pytest.raises(ValueError, match="claim"):
        checks(Tilted(), attacks.pgd, claim=87)


def pretended(broken: int, moved=1.0):
    """An attack that says it breaks the first `broken` images, and moves each by so much of eps."""

    def attack(model, x, y, ball):
        done = attacks.fgsm(model, x, y, replace(ball, eps=0.0))
        cost = ball.eps * torch.as_tensor(moved).expand(len(x))
        return replace(done, success=torch.arange(len(x)) < broken, cost=cost)

    return attack


def doubts(attack, count=20, ones=None, ball=LINF, **options):
    """The checks that speak up, on images that the network reads correctly; labels 0 and 1."""
    ones = count // 2 if ones is None else ones
    y = (torch.arange(count) < ones).long()
    x = (0.3 + 0.4 * y)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    return [d.check for d in evaluate.sanity(Tilted(), x, y, attack, ball, **options)]


def test_half_of_the_images_must_move_as_far_as_they_may():
    """The others may stand short; one that moves far does not speak for the rest."""
    all_alike = [pretended(0, part) for part in (0.951, 0.949)]
    assert [("short steps" in doubts(attack)) for attack in all_alike] == [False, True]
    far, short = torch.ones(20), torch.full((20,), 0.2)
    for few, expected in ((9, False), (11, True)):
        mixed = torch.where(torch.arange(20) < few, short, far)
        assert ("short steps" in doubts(pretended(0, mixed))) is expected
    # what breaks may have moved as little as it had to
    broken = torch.where(torch.arange(20) < 12, short, far)
    assert "short steps" not in doubts(pretended(12, broken))


def test_a_rival_may_break_one_image_or_one_percent_alone():
    for count, most in ((20, 1), (100, 1), (300, 3)):
        for more, expected in ((0, False), (1, True)):
            seen = doubts(pretended(0), count, others={"rival": pretended(most + more)})
            assert ("black box" in seen) is expected, (count, more)
    assert "black box" not in doubts(pretended(5), others={"rival": pretended(5)})


def test_a_claim_is_doubted_above_the_interval():
    high = evaluate.share(15, 20).high
    assert "claim" not in doubts(pretended(5), claim=high)
    assert "claim" in doubts(pretended(5), claim=high + 1e-9)


def test_the_grey_image_is_in_balls_from_a_half_on():
    """At most the most frequent label can stand there; 12 of 20 are ones."""
    for eps, broken, expected in ((0.5, 7, True), (0.5, 8, False), (0.499, 0, False)):
        seen = doubts(pretended(broken), ones=12, ball=LinfBall(eps))
        assert ("grey image" in seen) is expected, (eps, broken)
    assert "grey image" in doubts(pretended(8), ones=12, ball=LinfBall(0.5), claim=0.61)
    assert "grey image" not in doubts(pretended(8), ones=12, ball=LinfBall(0.5), claim=0.6)
    assert "grey image" not in doubts(pretended(0), ball=L2Ball(0.5))


def test_far_out_no_more_may_stand_than_the_most_frequent_label():
    """Of 20, 10 have one label: the interval of what stands must reach down to a half."""
    least = next(n for n in range(20) if evaluate.wilson(n, 20)[0] > 0.5)
    for stands, expected in ((least, True), (least - 1, False)):
        assert ("not to chance" in doubts(pretended(20 - stands))) is expected
        l2 = doubts(pretended(20 - stands), ball=L2Ball(0.1), far=3.0)
        assert ("not to chance" in l2) is expected
    assert "not to chance" not in doubts(pretended(0), ball=L2Ball(0.1))


@pytest.mark.parametrize("count", [20, 100])
def test_a_tenth_of_the_images_may_have_no_gradient(count):
    """Images whose corner is black are cut off from the network's gradient."""

    class Cut(Tilted):
        def forward(self, x):
            seen = torch.where(x[:, :1, :1, :1] > 0, x, x.detach())
            return super().forward(seen) + 0 * x.sum()

    x, y = greys(count)
    for flat, expected in ((count // 10, False), (count // 10 + 1, True)):
        z = x.clone()
        z[:flat, :, 0, 0] = 0
        y = (z.mean((1, 2, 3)) > 0.5).long()
        seen = [d.check for d in evaluate.sanity(Cut(), z, y, attacks.pgd, LINF)]
        assert ("zero gradients" in seen) is expected


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_gradients_of_the_cross_entropy_are_looked_at_apart(scale):
    """At scale 100 p rounds to 1 on most of the images, at 1 on none."""
    sure = type("Sure", (Tilted,), {"forward": lambda self, x: scale * Tilted.forward(self, x)})
    assert ("zero gradients" in checks(sure(), attacks.pgd)) is (scale > 1)


@pytest.mark.parametrize(
    "ball",
    [LinfBall(0.1), L2Ball(0.4), WassersteinBall(0.1), InternalWassersteinBall(0.2)],
    ids=lambda ball: type(ball).__name__,
)
def test_random_images_of_every_ball_use_it(ball):
    """A network that breaks where an image is nearly as far from one of its own as the ball goes.

    What it breaks on must lie in the ball, and an attack that finds nothing is found out.
    """
    x, y = halves(4)

    class Near(nn.Module):
        seen = ()

        def forward(self, z):
            self.seen = (*self.seen, z)
            far = ball.distance(x, z.detach()) if len(z) == len(x) else z.new_zeros(len(z))
            right = 0.5 - (far > 0.8 * ball.eps).to(z.dtype) + 0 * z.sum((1, 2, 3))
            return torch.stack([right, -right], 1) * (1 - 2 * y[: len(z), None])

    model = Near()
    assert evaluate.are_right(model, x, y).all()
    model.seen = ()
    seen = evaluate.sanity(model, x, y, pretended(0), ball)
    assert "random images of the ball: breaks 4 images" in " ".join(map(str, seen))
    for z in model.seen[-20:]:
        assert ball.contains(x, z).all()


def test_sanity_reads_images_in_the_models_dtype():
    class Half(Tilted):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x):
            assert x.dtype == torch.bfloat16
            return super().forward(self.scale * x)

    x, y = greys()
    x = x + 0.1 * (2 * y[:, None, None, None] - 1)
    x, y = x[(x > 0).flatten(1).all(1) & (x < 1).flatten(1).all(1)], y
    y = (x.mean((1, 2, 3)) > 0.5).long()

    def attack(model, x, y, ball):
        return pretended(len(x))(Tilted(), x, y, ball)

    assert evaluate.sanity(Half(), x, y, attack, LINF) == []
