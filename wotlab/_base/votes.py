"""What a network says of many noisy copies of one image."""

from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.networks import are_together, logits_of
from wotlab._base.precision import full_precision

ABSTAINS = -1


def count_classes(model: nn.Module, x: Tensor) -> int:
    """The number of classes of a model that images can be given to."""
    are_together(model, x)
    few = full_precision(x[:1])
    classes = checks.logits(logits_of(model, few), few)
    if classes < 2:
        raise ValueError(f"model must return logits of two classes or more; got {classes}")
    return classes


def votes(model: nn.Module, z: Tensor, classes: int) -> Tensor:
    """How often each class is given: (classes,)."""
    return logits_of(model, z).argmax(1).bincount(minlength=classes)


def winner(seen: Tensor, alpha: float) -> int:
    """The class with the most votes, or none if it may be even with the second."""
    from scipy.stats import binomtest

    (one, two), (guess, _) = (part.tolist() for part in seen.topk(2))
    return guess if binomtest(one, one + two, 0.5).pvalue <= alpha else ABSTAINS
