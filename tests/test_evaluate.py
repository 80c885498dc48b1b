"""Accuracy is a count with an interval."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from wotlab import evaluate


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
