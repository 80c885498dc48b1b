"""Accuracy is a count with an interval."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from wotlab import L2Ball, LinfBall, WassersteinBall, attacks, evaluate


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_interval_is_scipys(total, part, confidence):
    count = round(part * total)
    theirs = binomtest(count, total).proportion_ci(confidence, method="wilson")
    assert evaluate.wilson(count, total, confidence) == pytest.approx((theirs.low, theirs.high))
    low, high = evaluate.wilson(count, total)
    assert 0 <= low <= count / total <= high <= 1


@pytest.mark.parametrize("bad", [(1, 0), (-1, 5), (6, 5)])
def test_counts_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="count"):
        evaluate.wilson(*bad)
    with pytest.raises(ValueError, match="confidence"):
        evaluate.wilson(1, 2, 1.0)


class Pixel(nn.Module):
    """Class 1 where the first pixel is bright; in train mode always class 0."""

    def forward(self, x):
        logits = torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], 1)
        return logits if not self.training else torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


def images(count=20):
    x = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(count) % 2


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("training", [True, False])
def test_accuracy_is_the_count_in_eval_mode(batch_size, training):
    x, y = images()
    model = Pixel().train(training)
    right = int(((x[:, 0, 0, 0] > 0.5).long() == y).sum())
    share = evaluate.accuracy(model, (x, y), batch_size=batch_size)
    assert (share.count, share.total, share.value) == (right, 20, right / 20)
    assert model.training is training
    assert str(share) == f"{right / 20:.1%} ({share.low:.1%} to {share.high:.1%}), {right} of 20"


class Broken(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda x: torch.full((len(x), 2), torch.nan), "NaN"),
        (lambda x: torch.zeros(len(x)), "logits"),
        (lambda x: torch.zeros(1, 2), "logits"),
    ],
)
def test_broken_models_are_named_and_put_back(output, says):
    model = Broken(output).train()
    with pytest.raises(ValueError, match=f"model .*{says}"):
        evaluate.accuracy(model, images())
    assert model.training


def test_data_without_images_or_labels_is_refused():
    x, y = images()
    with pytest.raises(ValueError, match="no images"):
        evaluate.accuracy(Pixel(), (x[:0], y[:0]))
    with pytest.raises(ValueError, match="data must"):
        evaluate.accuracy(Pixel(), (x, y[:5]))
    with pytest.raises(ValueError, match="data must"):
        evaluate.accuracy(Pixel(), torch.utils.data.TensorDataset(x))


class Tilted(nn.Module):
    """Class 1 where the mean is above a half: breaks under eps = |mean - 1/2|, exactly."""

    def forward(self, x):
        score = 20 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-score, score], 1)


def greys(count=60):
    x = torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    x = x.clamp(0.01, 0.99).expand(-1, 1, 4, 4).clone()
    return x, (x.mean((1, 2, 3)) > 0.5).long()


LINF = LinfBall(0.1)


def test_curve_is_the_share_of_larger_margins():
    x, y = greys()
    margin = (x[:, 0, 0, 0] - 0.5).abs()
    curve = evaluate.accuracy_curve(Tilted(), x, y, attacks.pgd, LINF, [0.3, 0.0, 0.1, 0.6])
    assert curve.eps == (0.0, 0.1, 0.3, 0.6)
    for eps, each, left in zip(curve.eps, curve.shares, curve.left, strict=True):
        assert torch.equal(left, margin > eps) and each.count == int((margin > eps).sum())
    assert "eps 0.1:" in str(curve) and curve.shares[0].value == 1
    for bad in ([], [-0.1]):
        with pytest.raises(ValueError, match="eps"):
            evaluate.accuracy_curve(Tilted(), x, y, attacks.pgd, LINF, bad)


def test_an_honest_evaluation_raises_no_doubt():
    x, y = greys()
    for ball in (LINF, LinfBall(0.5), L2Ball(0.4), WassersteinBall(0.2)):
        assert evaluate.sanity(Tilted(), x, y, attacks.pgd, ball) == []


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


def test_an_attack_without_gradients_that_is_stronger_is_a_doubt():
    timid = partial(attacks.pgd, steps=5, step_size=0.005)
    assert "black box" in checks(Tilted(), timid, others={"pgd": attacks.pgd})
    assert "black box" not in checks(Tilted(), attacks.pgd, others={"fgsm": attacks.fgsm})
    with pytest.raises(ValueError, match="claim"):
        checks(Tilted(), attacks.pgd, claim=87)


def test_success_rate_counts_misread_images_apart():
    """Four images: two that the attack can break, one that it cannot, one that is misread."""
    x = torch.full((4, 1, 3, 3), 0.9)
    x[:2] = 0.6
    y = torch.tensor([1, 1, 1, 0])
    done = attacks.fgsm(Pixel().eval(), x, y, LinfBall(0.2))
    assert done.success.tolist() == [True, True, False, True]
    rate = evaluate.success_rate(Pixel(), x, y, done)
    assert (rate.count, rate.total) == (2, 3)
    aimed = attacks.fgsm(Pixel().eval(), x, 1 - y, LinfBall(0.2), targeted=True)
    rate = evaluate.success_rate(Pixel(), x, 1 - y, aimed, targeted=True)
    assert (rate.count, rate.total) == (2, 3)
    with pytest.raises(ValueError, match="done must be a result for 2 images"):
        evaluate.success_rate(Pixel(), x[:2], y[:2], done)
    with pytest.raises(ValueError, match="all 1 are misread from the start"):
        done = attacks.fgsm(Pixel().eval(), x[3:], y[3:], LinfBall(0.2))
        evaluate.success_rate(Pixel(), x[3:], y[3:], done)
