"""What an attack climbs: the loss of a classifier, its gradient, and whether it is broken."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from wotlab._base.batch import kept
from wotlab._base.networks import divergence, logits_of

LOSSES = ("ce", "margin", "kl")


@dataclass(frozen=True, eq=False)
class Objective:
    r"""Loss to climb: large where the model errs (or, targeted, where it says the target).

    `ce` climbs the cross-entropy :math:`-\log p_y` through :math:`\log((1 - p_y) / p_y)`, which
    grows with it and has a gradient of the same direction that does not vanish in floating point
    where p_y rounds to 1, as it does on networks that are sure of themselves. `margin` is the best
    logit of another class minus that of the label. Targeted, `y` are the classes to reach, and both
    losses change their sign. `kl` is KL(p(x) | p(z)) with p(x) from the logits `clean`: how far the
    prediction has moved, whatever the label (Zhang et al., 2019). It is flat at z = x: start
    elsewhere. With `aims`, a class an image, the loss is the logit of that class minus the label's:
    an untargeted attack that runs towards one class.

    Parameters
    ----------
    model : nn.Module
    y : Tensor (B,), int64
    targeted : bool
    loss : "ce", "margin" or "kl"
    clean : Tensor (B, classes), optional
        Logits of the clean images; "kl" needs them.
    aims : Tensor (B,), int64, optional

    Examples
    --------
    >>> from wotlab import attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(2))
    >>> goal = attacks.Objective(model, y, targeted=False, loss="margin")
    >>> gradient, loss, broken = goal.gradient(x.double())
    >>> gradient.shape, [round(m, 2) for m in loss.tolist()]  # right by this much
    (torch.Size([2, 1, 8, 8]), [-1.91, -8.65])
    """

    model: nn.Module
    y: Tensor
    targeted: bool
    loss: str
    clean: Tensor | None = None
    aims: Tensor | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")

    def select(self, keep: Tensor) -> Self:
        """The same for some of the images: their places, or booleans."""
        y, clean, aims = kept((self.y, self.clean, self.aims), keep)
        return replace(self, y=y, clean=clean, aims=aims)

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, C, H, W), loss (B,) as of `at`, and whether each image is broken, (B,)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            loss, broken = self.at(z)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        return gradient, loss.detach(), broken

    def value(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,), and whether each image is broken, (B,); ValueError where there is NaN."""
        loss, broken = self.at(z)
        no_answer(loss.isnan())
        return loss, broken

    def at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The same, but NaN in the loss where there is one in the logits: nobody waits for it."""
        logits = logits_of(self.model, z)
        loss = self._loss(logits).masked_fill(logits.isnan().any(1), torch.nan)
        return loss, self.broken(logits)

    def broken(self, logits: Tensor) -> Tensor:
        """Whether the images are what the attacker wants: wrong, or the target."""
        return (logits.argmax(1) == self.y) == self.targeted

    def _loss(self, logits: Tensor) -> Tensor:
        own = logits.gather(1, self.y[:, None])[:, 0]
        if self.aims is not None:
            return logits.gather(1, self.aims[:, None])[:, 0] - own
        if self.loss == "kl":
            assert self.clean is not None  # `objective_of` gives them
            return divergence(self.clean, logits) * (-1 if self.targeted else 1)
        others = logits.scatter(1, self.y[:, None], -torch.inf)
        rival = others.logsumexp(1) if self.loss == "ce" else others.amax(1)
        return own - rival if self.targeted else rival - own


def no_answer(nan: Tensor) -> None:
    """ValueError if any of these, (B,), is true."""
    if bool(nan.any()):
        raise ValueError(
            "model returns NaN on an attacked image, which is no answer; check its weights, "
            "and that it takes every image in [0, 1]"
        )


Kind = Callable[..., Objective]  # the class, perhaps with more numbers of its own bound


def objective_of(
    model: nn.Module, x: Tensor, y: Tensor, targeted: bool, loss: str, kind: Kind = Objective
) -> Objective:
    """The objective around the clean images x."""
    return kind(model, y, targeted, loss, logits_of(model, x) if loss == "kl" else None)
