"""Smoothed classifiers by sampling: which class wins under noise, and how far for sure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wotlab._base import checks, draws
from wotlab._base.modes import eval_mode
from wotlab._base.precision import full_precision
from wotlab._base.votes import ABSTAINS, count_classes, votes, winner
from wotlab.ot import GroundCost
from wotlab.smoothing._flows import disturbed
from wotlab.smoothing._radii import flow_rate, laplace_radius


@dataclass(frozen=True)
class Smoothed:
    """What a smoothed classifier says of images, and how far around them it says the same.

    Attributes
    ----------
    prediction : Tensor (B,), int64
        The class; -1 where the classifier abstains, so that it equals no label.
    radius : Tensor (B,)
        No image nearer than this is given another class, in the units that the function says.
        0 where it abstains.

    Examples
    --------
    >>> import torch
    >>> from wotlab import smoothing
    >>> found = smoothing.Smoothed(torch.tensor([7, -1]), torch.tensor([0.02, 0.0]))
    >>> found.abstained
    tensor([False,  True])
    """

    prediction: Tensor
    radius: Tensor

    @property
    def abstained(self) -> Tensor:
        """Where nothing is said: booleans (B,)."""
        return self.prediction == ABSTAINS


def certify(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    samples: tuple[int, int] = (100, 10_000),
    alpha: float = 0.001,
    ground_cost: GroundCost | None = None,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Smoothed:
    r"""How far around each image the smoothed classifier gives one class, with high confidence.

    .. math:: g(x) = \mathrm{argmax}_c\, P\bigl(\mathrm{model} \text{ says } c \text{ of }
        \mathtt{noisy}(x)\bigr)

    Parameters
    ----------
    model : nn.Module
        Images to logits. It sees noisy images, which leave [0, 1]; one that was not trained on
        them seldom stands much noise (see `wotlab.training.NoiseAugmentation`).
    x : Tensor (B, C, H, W)
        Images in [0, 1].
    sigma : float > 0
        Deviation of the noise, as for `noisy`. The radius is proportional to it.
    samples : (int, int)
        Noisy images, of each image, that choose the class, and others that bound its share. The
        second number limits the radius: 10,000 allow :math:`6.6\, b` and 1,000 allow
        :math:`4.3\, b`, with :math:`b = \sigma / \sqrt2`, in the l1 ground cost. By default 100 as
        in Cohen et al. (2019), who draw 100,000 others, and 10,000 as in Levine and Feizi (2020).
    alpha : float in (0, 1)
        Probability of a radius that is too large, for each image: 0.001 as in Cohen et al. (2019);
        0.05 in Levine and Feizi (2020).
    ground_cost : GroundCost, optional
        That of the ball; by default as in `WassersteinBall`.
    batch_size : int >= 1
        Noisy images that the network sees at a time.
    generator : torch.Generator, optional
    progress : bool

    Returns
    -------
    Smoothed
        Its radius in the units of `WassersteinBall`: with a probability of at least 1 - alpha, no
        image of the same mass in each channel that costs less has another class g. It abstains
        where no class is shown to have more than half.

    Raises
    ------
    ValueError
        For bad x, numbers out of range, or a model that does not return logits.

    Notes
    -----
    The radius is `flow_rate` times `laplace_radius` of a lower bound of the share, that of Clopper
    and Pearson (1934). A ball of the l1 ground cost is one of flows (see `flow`), where the
    noise lives: z = flow(x, d) has the noisy images flow(x, d + noise), the noise shifted by d.
    For :math:`\lVert i - j\rVert_2`, the default, a factor of :math:`\sqrt2` is lost on the way, as
    in the paper. The paper's radii are smaller, down to half of these: see `laplace_radius`.

    What is proven holds of g and not of the network itself. The proof takes the noise for real
    numbers; what floats round is not followed up.

    Examples
    --------
    >>> import torch
    >>> from wotlab import data, models, smoothing
    >>> model = models.load("mnist-standard")
    >>> x, y = data.load("mnist-5k").tensors(slice(2))
    >>> noise = torch.Generator().manual_seed(0)
    >>> found = smoothing.certify(
    ...     model, x, sigma=0.0005, samples=(20, 500), generator=noise
    ... )
    >>> found.prediction == y, 784 * found.radius.round(decimals=5)
    (tensor([True, True]), tensor([0.7056, 0.7056]))
    """
    first, many = _both(samples)
    confidence(alpha)
    rate = flow_rate(GroundCost() if ground_cost is None else ground_cost, *x.shape[-2:])
    found, radii = [], []
    for vote in _voters(model, x, sigma, batch_size, generator, progress):
        guess = int(vote(first).argmax())
        low = lower_share(int(vote(many)[guess]), many, alpha)
        radii.append(rate * laplace_radius(low, sigma))
        found.append(guess if low > 0.5 else ABSTAINS)
    return Smoothed(torch.tensor(found, device=x.device), x.new_tensor(radii))


def predict(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    samples: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 1000,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """The class that the smoothed classifier of `certify` gives each image, or none.

    Parameters
    ----------
    model, x, sigma, batch_size, generator, progress
        As for `certify`.
    samples : int >= 1
        Noisy images of each image.
    alpha : float in (0, 1)
        Probability of another class than that of the smoothed classifier, for each image.

    Returns
    -------
    Tensor (B,), int64
        Classes; -1 where the first two are too close to be told apart: where an exact binomial
        test does not reject, at the level alpha, that both come equally often (Cohen et al., 2019).

    Raises
    ------
    ValueError
        As for `certify`.

    Examples
    --------
    >>> import torch
    >>> from wotlab import data, models, smoothing
    >>> model = models.load("mnist-standard")
    >>> x, y = data.load("mnist-5k").tensors(slice(4))
    >>> noise = torch.Generator().manual_seed(0)
    >>> smoothing.predict(model, x, sigma=0.0005, samples=100, generator=noise) == y
    tensor([True, True, True, True])
    """
    checks.count("samples", samples)
    confidence(alpha)
    voters = _voters(model, x, sigma, batch_size, generator, progress)
    return torch.tensor([winner(vote(samples), alpha) for vote in voters], device=x.device)


Vote = Callable[[int], Tensor]  # how often each class is given to so many noisy images: (classes,)


def _voters(
    model: nn.Module, x: Tensor, sigma: float, batch_size: int,
    generator: torch.Generator | None, progress: bool,
) -> Iterator[Vote]:  # fmt: skip
    """Of each image, in turn, the one that asks the network about noisy copies."""
    checks.images("x", x, black=True)
    checks.positive("sigma", sigma)
    checks.count("batch_size", batch_size)
    draws.check(generator)
    with eval_mode(model):
        classes = count_classes(model, x)
        for one in tqdm(full_precision(x).split(1), disable=not progress, leave=False):

            def vote(count: int, one: Tensor = one) -> Tensor:
                made = torch.zeros(classes, dtype=torch.long, device=one.device)
                for start in range(0, count, batch_size):
                    few = one.expand(min(batch_size, count - start), -1, -1, -1)
                    made += votes(model, disturbed(few, sigma, generator), classes)
                return made

            yield vote


def lower_share(count: int, total: int, alpha: float) -> float:
    """What a share is at least, with a confidence of 1 - alpha (Clopper and Pearson, 1934)."""
    from scipy.stats import binomtest

    test = binomtest(count, total, alternative="greater")
    return float(test.proportion_ci(1 - alpha, method="exact").low)


def confidence(alpha: float) -> None:
    """A probability of error that leaves something to say."""
    checks.positive("alpha", alpha)
    checks.share("alpha", alpha, one=False)


def _both(samples: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(samples, tuple | list) or len(samples) != 2:
        raise ValueError(
            f"samples must be two numbers, those that choose the class and those that bound its "
            f"share, such as (100, 10_000); got {checks.found(samples)}"
        )
    for number in samples:
        checks.count("samples", number)
    return samples[0], samples[1]
