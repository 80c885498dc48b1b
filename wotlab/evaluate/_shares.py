"""A share of images, with the uncertainty that its sample size leaves."""

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Share:
    """A share `count / total` with its 95 % Wilson interval, from `low` to `high`.

    `float(share)` is its value, so that it serves where a number is asked for.

    Attributes
    ----------
    value : float
    low, high : float
    count, total : int

    Examples
    --------
    >>> from wotlab import evaluate
    >>> share = evaluate.share(90, 100)
    >>> float(share), round(share.low, 3), round(share.high, 3)
    (0.9, 0.826, 0.945)
    """

    value: float
    low: float
    high: float
    count: int
    total: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}), {self.count} of {self.total}"


def wilson(count: int, total: int) -> tuple[float, float]:
    r"""Wilson's 95 % score interval of a share, which stays right near 0 and 1.

    .. math:: \frac{p + \frac{c^2}{2n} \pm c \sqrt{\frac{p (1 - p)}{n} + \frac{c^2}{4 n^2}}}
        {1 + \frac{c^2}{n}}, \qquad p = \frac{\mathtt{count}}{n}, \quad n = \mathtt{total},
        \quad c = 1.96

    Parameters
    ----------
    count, total : int
        Successes and trials, 0 <= count <= total, total >= 1.

    Raises
    ------
    ValueError
        For values out of these ranges.

    Examples
    --------
    >>> from wotlab import evaluate
    >>> [round(end, 3) for end in evaluate.wilson(0, 100)]  # none of a hundred is not never
    [0.0, 0.037]
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(f"count must lie in 0..total and total be >= 1; got {count} of {total}")
    z = NormalDist().inv_cdf(0.975)
    share = count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + (z / total / 2) ** 2)
    return (0.0 if count == 0 else middle - half), (1.0 if count == total else middle + half)


def share(count: int, total: int) -> Share:
    """`count` of `total` as a `Share`.

    Parameters
    ----------
    count, total : int
        0 <= count <= total, total >= 1.

    Examples
    --------
    >>> from wotlab import evaluate
    >>> print(evaluate.share(90, 100))
    90.0% (82.6% to 94.5%), 90 of 100
    """
    low, high = wilson(count, total)
    return Share(count / total, low, high, count, total)
