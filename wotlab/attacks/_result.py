"""What an attack returns."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from wotlab.balls import TOLERANCE, Ball, WassersteinBall


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
        Distance from x. For a Wasserstein ball the price of the plan that made the image: an
        upper bound of the exact distance, which `wotlab.certify` gives.
    mass_error : Tensor (B,)
        Largest change of a channel's mass, as a share of the image's mass; huge for images that
        were black.
    box_error : Tensor (B,)
        How far pixels leave [0, 1].
    steps : Tensor, integers (B,)
        Gradient steps taken until the image was broken, or in all.
    misread : Tensor, booleans (B,)
        Broken before the attack: the clean image is misread, or targeted already read as the
        target. Such images count in `success`.
    seconds : float
        Wall time of the whole call.
    """

    x_adv: Tensor
    success: Tensor
    cost: Tensor
    mass_error: Tensor
    box_error: Tensor
    steps: Tensor
    misread: Tensor
    seconds: float

    def __repr__(self) -> str:
        count, total, clean = int(self.success.sum()), len(self.success), int(self.misread.sum())
        before = f", {clean} of them before the attack" if clean else ""
        return f"AttackResult({count} of {total} images broken{before}, {self.seconds:.1f} s)"


def judge(x: Tensor, found, cost: Tensor, ball: Ball, start: float) -> AttackResult:
    """The result of what was `found`, with success only where the image is inside the ball."""
    x_adv = found.x_adv
    before, after = x.double().sum((2, 3)), x_adv.double().sum((2, 3))
    mass = before.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)  # 0 of black images
    mass_error = ((after - before).abs() / mass).amax(1).to(x.dtype)
    box_error = torch.maximum(-x_adv, x_adv - 1).clamp_min(0).amax((1, 2, 3))
    inside = (cost <= ball.eps * (1 + TOLERANCE) + torch.finfo(x.dtype).eps) & (
        box_error <= TOLERANCE
    )
    if isinstance(ball, WassersteinBall):
        inside &= mass_error <= TOLERANCE
    return AttackResult(
        x_adv=x_adv, success=found.broken & inside, cost=cost, mass_error=mass_error,
        box_error=box_error, steps=found.steps, misread=found.misread,
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def join(parts: list[AttackResult], start: float) -> AttackResult:
    """One result from those of the parts of a batch."""
    fields = ("x_adv", "success", "cost", "mass_error", "box_error", "steps", "misread")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
    return AttackResult(**joined, seconds=time.perf_counter() - start)
