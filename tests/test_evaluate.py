"""Accuracy is a count with an interval."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from wotlab import LinfBall, attacks, evaluate


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_interval_is_scipys(total, part):
    count = round(part * total)
    theirs = binomtest(count, total).proportion_ci(method="wilson")
    low, high = evaluate.wilson(count, total)
    assert (low, high) == pytest.approx((theirs.low, theirs.high))
    assert 0 <= low <= count / total <= high <= 1


@pytest.mark.parametrize("bad", [(1, 0), (-1, 5), (6, 5)])
def test_counts_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="count"):
        evaluate.wilson(*bad)


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


def test_a_share_is_a_number_where_one_is_asked_for():
    """As `fit(validate=...)` asks for one."""
    x, y = images()
    assert float(evaluate.accuracy(Pixel(), (x, y))) == evaluate.accuracy(Pixel(), (x, y)).value


MEASURES = {  # everything that asks which images a model reads correctly
    "accuracy": lambda model, x, y: evaluate.accuracy(model, (x, y)).count,
    "are_right": lambda model, x, y: int(evaluate.are_right(model, x, y).sum()),
    "accuracy_curve": lambda model, x, y: (
        evaluate.accuracy_curve(model, x, y, attacks.fgsm, LinfBall(0.1), [0.0]).shares[0].count
    ),
    "success_rate": lambda model, x, y: (
        evaluate.success_rate(
            model, x, y, attacks.fgsm(Pixel().eval(), x, images()[1], LinfBall(0.1))
        ).total
    ),
    "sanity": lambda model, x, y: evaluate.sanity(model, x, y, attacks.pgd, LinfBall(0.1)),
}


class Threshold(nn.Module):
    """Class 1 where the first pixel is above a weight; and parts that have modes of their own."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(0.5))
        self.thawed, self.frozen = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x):
        x = self.frozen(self.thawed(x))
        return torch.stack([self.at - x[:, 0, 0, 0], x[:, 0, 0, 0] - self.at], 1)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_module_is_back_in_its_own_mode(measure):
    x, y = images()
    model = Threshold().train()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    MEASURES[measure](model, x, y)
    assert model.training and model.thawed.training and not model.frozen.training
    for name, value in model.state_dict().items():  # no statistics either
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda y: y[:, None], r"integers of shape \(20,\).*got \(20, 1\)"),
        (lambda y: y.double(), r"integers of shape \(20,\).*float64"),
        (lambda y: y == 1, r"integers of shape \(20,\).*bool"),
        (lambda y: y + 1, r"must lie in 0\.\.1.*got 1\.\.2"),
        (lambda y: -y, r"must lie in 0\.\.1.*got -1\.\.0"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(measure, bad, says):
    """Labels (N, 1) would be compared with every prediction: wrong ones could count as right."""
    x, y = images()
    with pytest.raises(ValueError, match=says):
        MEASURES[measure](Pixel(), x, bad(y))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_kind(kind):
    x, y = images()
    expected = evaluate.accuracy(Pixel(), (x, y)).count
    assert evaluate.accuracy(Pixel(), (x, y.to(kind))).count == expected


@pytest.mark.parametrize("model_type", [torch.float64, torch.float16, torch.bfloat16])
def test_images_are_read_in_the_models_dtype(model_type):
    """Values on a grid of 1/16, away from the threshold: exact in every dtype."""
    x = (16 * images()[0]).floor() / 16 + 1 / 32
    y = (x[:, 0, 0, 0] > 0.5).long()
    y[:3] = 1 - y[:3]
    model = Threshold().to(model_type)
    assert evaluate.accuracy(model, (x, y)).count == 17
    right = evaluate.are_right(model, x, y, batch_size=7)
    assert right.tolist() == [False] * 3 + [True] * 17


def test_pixels_of_0_to_255_are_refused():
    x, y = images()
    with pytest.raises(ValueError, match=r"images must be floating-point.*uint8"):
        evaluate.accuracy(Pixel(), ((255 * x).byte(), y))


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
