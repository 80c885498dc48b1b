"""Attacks of other libraries behind the interface of ours: AutoAttack and the usual baselines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab._base.networks import are_right, check, logits_of
from wotlab._base.precision import full_precision
from wotlab.attacks._result import AttackResult, Best, join, judge
from wotlab.balls import Ball, L2Ball, LinfBall

Defaults = Callable[[Ball], dict[str, Any]]
FEWEST = 4  # classes that AutoAttack's targeted loss compares


class _Cast(nn.Module):
    """A model of any dtype for images of another."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return logits_of(self.model, z)


class _FourClasses(_Cast):
    """A model of two classes or more for a library whose loss compares the four largest logits.

    Classes that are missing to four get logits just below all others, which no image reaches and
    which have no slope.
    """

    def forward(self, z: Tensor) -> Tensor:
        logits = super().forward(z)
        missing = max(0, FEWEST - logits.shape[1])
        below = logits.detach().amin(1, keepdim=True) - 1
        return torch.cat([logits, below.expand(-1, missing)], 1)


def _auto(model: nn.Module, ball: Ball, x: Tensor, y: Tensor, seed: int, **options: Any) -> Tensor:
    from pyautoattack import AutoAttack

    others = logits_of(model, x[:1]).shape[1] - 1
    model, x = _FourClasses(model), x.float()
    run = AutoAttack(model, norm=ball.norm, eps=ball.eps, seed=seed, device=x.device, **options)
    for part in (run.apgd_targeted, run.fab):
        part.n_target_classes = min(part.n_target_classes, others)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # of what it draws: its images are float32
    try:
        return run.run_standard_evaluation(x, y, batch_size=len(x))[0]
    finally:
        torch.set_default_dtype(usual)


def _torchattacks(
    made: str, usual: Defaults, model: nn.Module, ball: Ball, x: Tensor, y: Tensor, **options: Any
) -> Tensor:
    attack = getattr(_torchattacks_library(), made)(_Cast(model), **(usual(ball) | options))
    attack.set_device(x.device)
    return attack(x, y)


def _iterated(ball: Ball) -> dict[str, Any]:
    return {"eps": ball.eps, "alpha": ball.eps / 4}


LINF, L2, BOTH = ("Linf",), ("L2",), ("Linf", "L2")
# name: class of torchattacks, the norms that it knows, and its arguments where nobody gives any
NAMES: dict[str, tuple[str, tuple[str, ...], Defaults]] = {
    "autoattack": ("", BOTH, lambda ball: {}),
    "cw": ("CW", L2, lambda ball: {}),
    "deepfool": ("DeepFool", L2, lambda ball: {}),
    "ffgsm": ("FFGSM", LINF, lambda ball: {"eps": ball.eps, "alpha": 1.25 * ball.eps}),
    "m-di2-fgsm": ("DIFGSM", LINF, lambda ball: _iterated(ball) | {"decay": 1.0}),
    "mi-fgsm": ("MIFGSM", LINF, _iterated),
    "pgd-l2": ("PGDL2", L2, _iterated),
    "square": ("Square", BOTH, lambda ball: {"eps": ball.eps, "norm": ball.norm}),
    "tpgd": ("TPGD", LINF, _iterated),
}


def library(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: LinfBall | L2Ball,
    *,
    name: str = "autoattack",
    seed: int = 0,
    batch_size: int = 500,
    **options: Any,
) -> AttackResult:
    r"""An attack of pyautoattack (Croce and Hein, 2020) or torchattacks (Kim, 2020).

    Parameters
    ----------
    model, x, y
        As for `pgd`: images in [0, 1], true labels, a model that returns logits.
    ball : LinfBall or L2Ball
    name : str
        "autoattack" (either ball; the standard version: APGD on the cross-entropy, targeted APGD
        and FAB, Square), "square" (either ball; sees no gradients), "ffgsm", "mi-fgsm",
        "m-di2-fgsm", "tpgd" (l-infinity), "cw", "deepfool", "pgd-l2" (l2; the first two look
        for the nearest image that breaks, and count where it lies in the ball).
    seed : int
        Of the attack's randomness; the global random state is left alone.
    batch_size : int
    options
        Go to the library's constructor, such as `steps=100`, `n_queries=1000`, or
        `version="custom", attacks=["apgd-ce"]` for AutoAttack. Steps are eps / 4 by default,
        1.25 eps for FFGSM; all else as the library has it.

    Returns
    -------
    AttackResult
        `steps` is 0 where the library does not say.

    Raises
    ------
    ValueError
        For an unknown name, a ball that the attack does not know, bad images or labels, or a
        model that returns NaN or probabilities.
    ImportError
        If torchattacks is not there, which all but AutoAttack need; says how to get it.

    Examples
    --------
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model = models.load("digits-standard")
    >>> x, y = data.load("digits").tensors(slice(20))
    >>> options = dict(version="custom", attacks=["apgd-ce"])
    >>> done = attacks.library(model, x, y, LinfBall(0.3), **options)
    >>> int(done.success.sum())
    20
    """
    start = time.perf_counter()
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(sorted(NAMES))}; got {name!r}")
    made, norms, defaults = NAMES[name]
    if not isinstance(ball, Ball) or ball.norm not in norms:
        known = " or ".join(f"{norm}Ball" for norm in norms)
        raise ValueError(f"ball must be a {known} for {name}; got {type(ball).__name__}")
    checks.count("batch_size", batch_size)
    run = partial(_torchattacks, made, defaults) if made else partial(_auto, seed=seed)
    x = full_precision(x)
    best = Best(x)
    with eval_mode(model) as passes, torch.random.fork_rng(range(torch.cuda.device_count())):
        check(model, x, y)
        torch.manual_seed(seed)
        best.misread = ~are_right(model, x, y, batch_size)  # broken as they are
        for rows in (~best.misread).nonzero()[:, 0].split(batch_size):
            if len(rows) and ball.eps > 0:
                with torch.enable_grad(), frozen(model):
                    best.x_adv[rows] = run(model, ball, x[rows], y[rows], **options).to(x)
        best.broken = ~are_right(model, best.x_adv, y, batch_size)
    return join([judge(x, best, ball.distance(x, best.x_adv), ball)], start, passes)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Weights that take no gradient: libraries call backward(), which would leave some."""
    trained = [w for w in model.parameters() if w.requires_grad]
    for w in trained:
        w.requires_grad_(False)
    try:
        yield
    finally:
        for w in trained:
            w.requires_grad_()


def _torchattacks_library() -> ModuleType:
    try:
        return import_module("torchattacks")
    except ImportError as error:
        # no dependency of ours: it pins an old version of requests, which it does not need here
        raise ImportError(
            "this attack needs torchattacks: pip install --no-deps torchattacks"
        ) from error
