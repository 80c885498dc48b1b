"""What an attack finds and returns."""

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from wotlab._base.modes import Passes
from wotlab.balls import Ball


class Best:
    """The best image of each of a batch, with its loss, cost, and the step it was found at."""

    def __init__(self, x: Tensor):
        self.x_adv, self.broken = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.cost, self.loss = x.new_zeros(len(x)), x.new_full((len(x),), -torch.inf)
        self.steps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.misread = self.broken.clone()  # whether the clean image is broken as it is

    def clone(self) -> Self:
        """The same in other memory."""
        other = copy(self)
        for name, part in vars(self).items():
            setattr(other, name, part.clone() if isinstance(part, Tensor) else part)
        return other

    def offer(
        self, index: Tensor, z: Tensor, broken: Tensor, cost: Tensor, loss: Tensor, t: int,
        alive: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Take what is broken first, and else what has the larger loss; says who may go on.

        Of images in `index` that are not `alive` nothing is taken: all are, by default.
        """
        alive = torch.ones_like(broken) if alive is None else alive
        was = self.broken[index]
        better = (broken & ~was) | ((broken == was) & (loss > self.loss[index]))
        self.put(index, alive & ~was, steps=t)
        self.put(index, alive & better, x_adv=z, broken=broken, cost=cost, loss=loss)
        return ~broken

    def put(self, index: Tensor, some: Tensor, **now: Tensor | int) -> None:
        """Write what is `now` known of `some`, booleans, of the images in `index`.

        All rows are written, most of them as they were: the places of a mask would keep a GPU's
        host waiting.
        """
        for name, value in now.items():
            known = getattr(self, name)
            then = known[index]
            known[index] = torch.where(some.reshape(-1, *[1] * (then.ndim - 1)), value, then)

    def take(self, index: Tensor, other: Self, rows: Tensor) -> None:
        """Replace what was found of `index` by what another run found in `rows`."""
        self.steps[index] += other.steps[rows]
        for name in ("x_adv", "broken", "cost", "loss"):
            getattr(self, name)[index] = getattr(other, name)[rows]


class Last(Best):
    """Keeps the last image of each, for methods whose answer is where they end.

    An image that is misread as it is stays so: it lies in its own ball.
    """

    def offer(
        self, index: Tensor, z: Tensor, broken: Tensor, cost: Tensor, loss: Tensor, t: int,
        alive: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        some = ~self.misread[index] | (t == 0)
        self.put(index, some, x_adv=z, broken=broken, steps=t, cost=cost, loss=loss)
        return torch.ones_like(broken)  # to the end: all are alive


@dataclass(frozen=True)
class AttackResult:
    """Attacked images with what they spent; one entry an image, detached.

    Attributes
    ----------
    x_adv : Tensor (B, C, H, W)
        A breaking image where one was found, else the image of the largest loss.
    success : Tensor, booleans (B,)
        Broken by an image inside the ball. An image that left the ball never counts; one that is
        wrong from the start does: `wotlab.evaluate.success_rate` counts those apart.
    cost : Tensor (B,)
        Distance from x. For a Wasserstein ball the cost of the plan that made the image: an
        upper bound of the exact distance, which `wotlab.certify` gives.
    mass_error : Tensor (B,)
        Largest change of a channel's mass, as a share of the image's mass; infinite for a black
        image that is no longer black.
    box_error : Tensor (B,)
        How far pixels leave [0, 1].
    steps : Tensor, integers (B,)
        Gradient steps taken until the image was broken, or in all.
    misread : Tensor, booleans (B,)
        Broken before the attack: the clean image is misread, or targeted already read as the
        target. Such images count in `success`.
    seconds : float
        Wall time of the whole call.
    forward, backward : int
        Images that went through the network in all, and gradients of images that came back:
        what an attack costs. On a GPU some images that are done go along for a few steps.

    Examples
    --------
    >>> from wotlab import LinfBall, attacks, data, models
    >>> model = models.load("digits-standard").double()
    >>> x, y = data.load("digits").tensors(slice(4))
    >>> done = attacks.pgd(model, x.double(), y, LinfBall(0.15))
    >>> done.success, done.steps
    (tensor([ True,  True, False,  True]), tensor([ 1,  3, 40,  8]))
    """

    x_adv: Tensor
    success: Tensor
    cost: Tensor
    mass_error: Tensor
    box_error: Tensor
    steps: Tensor
    misread: Tensor
    seconds: float
    forward: int
    backward: int

    def __repr__(self) -> str:
        count, total, clean = int(self.success.sum()), len(self.success), int(self.misread.sum())
        before = f", {clean} of them before the attack" if clean else ""
        return f"AttackResult({count} of {total} images broken{before}, {self.seconds:.1f} s)"


Attack = Callable[..., AttackResult]  # of model, images, labels, a ball, and options by name


def judge(x: Tensor, best: Best, cost: Tensor, ball: Ball) -> dict[str, Tensor]:
    """What was found, with success only where the image is inside the ball."""
    seen = ball.judge(x, best.x_adv, cost, exact=False)
    return {
        "x_adv": best.x_adv, "success": best.broken & seen.inside, "cost": seen.cost,
        "mass_error": seen.mass_error, "box_error": seen.box_error, "steps": best.steps,
        "misread": best.misread,
    }  # fmt: skip


def join(
    parts: list[dict[str, Tensor]], start: float, passes: Passes | AttackResult
) -> AttackResult:
    """One result from those of the parts of a batch."""
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return AttackResult(
        **joined, seconds=time.perf_counter() - start, forward=passes.forward,
        backward=passes.backward,
    )  # fmt: skip
