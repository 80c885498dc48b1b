"""What an attack climbs: the loss of a classifier, its gradient, and whether it is broken."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks

LOSSES = ("ce", "margin", "kl")


class Objective:
    """Loss to climb: large where the model errs (or, targeted, where it says the target).

    `ce` climbs the cross-entropy -log p_y through log((1 - p_y) / p_y), which grows with it and
    has a gradient of the same direction that does not vanish in floating point where p_y rounds
    to 1, as it does on networks that are sure of themselves. `margin` is the best logit of
    another class minus that of the label. Targeted, `y` are the classes to reach, and both
    losses change their sign. `kl` is KL(p(x) | p(z)) with p(x) from the logits `clean`: how far
    the prediction has moved, whatever the label (Zhang et al., 2019). It is flat at z = x: start
    elsewhere. With `aim`, a class an image, the loss is the logit of that class minus the
    label's: an untargeted attack that runs towards one class.
    """

    def __init__(self, model: nn.Module, y: Tensor, targeted: bool, loss: str, clean=None):
        self.model, self.y, self.targeted, self.loss = model, y, targeted, loss
        self.clean, self.aim = clean, None

    def select(self, keep: Tensor) -> "Objective":
        """The same for some of the images: their places, or booleans."""
        clean = None if self.clean is None else self.clean[keep]
        some = Objective(self.model, self.y[keep], self.targeted, self.loss, clean)
        some.aim = None if self.aim is None else self.aim[keep]
        return some

    def towards(self, aim: Tensor) -> "Objective":
        """The same climb, each image towards one class of its own."""
        some = Objective(self.model, self.y, self.targeted, self.loss, self.clean)
        some.aim = aim
        return some

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, C, H, W), loss (B,), and whether each image is broken, (B,)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            loss, broken = self.value(z)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        return gradient, loss.detach(), broken

    def value(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,), and whether each image is broken, (B,)."""
        logits = logits_of(self.model, z)
        if bool(logits.isnan().any()):
            raise ValueError(
                "model returns NaN on an attacked image, which is no answer; check its weights, "
                "and that it takes every image in [0, 1]"
            )
        return self._loss(logits), self.broken(logits)

    def broken(self, logits: Tensor) -> Tensor:
        """Whether the images are what the attacker wants: wrong, or the target."""
        return (logits.argmax(1) == self.y) == self.targeted

    def _loss(self, logits: Tensor) -> Tensor:
        own = logits.gather(1, self.y[:, None])[:, 0]
        if self.aim is not None:
            return logits.gather(1, self.aim[:, None])[:, 0] - own
        if self.loss == "kl":
            return divergence(self.clean, logits) * (-1 if self.targeted else 1)
        others = logits.masked_fill(F.one_hot(self.y, logits.shape[1]).bool(), -torch.inf)
        rival = others.logsumexp(1) if self.loss == "ce" else others.amax(1)
        return own - rival if self.targeted else rival - own


def dtype_of(model: nn.Module, z: Tensor) -> torch.dtype:
    """The dtype of a model's weights; that of its images where it has none."""
    weights = (w for w in model.parameters() if w.is_floating_point())
    return next((w.dtype for w in weights), z.dtype)


def logits_of(model: nn.Module, z: Tensor) -> Tensor:
    """Logits in the dtype of the images, which the model sees in its own."""
    return model(z.to(dtype_of(model, z))).to(z.dtype)


def wide(x: Tensor) -> Tensor:
    """Images in float32 or float64, whatever the precision of the model, detached."""
    x = x.detach().clone() if x.is_inference() else x.detach()
    return x if x.dtype == torch.float64 else x.float()


def divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """KL(p | q) of the classes' probabilities, from logits (B, classes): (B,)."""
    p, q = clean.log_softmax(1), moved.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def are_probabilities(logits: Tensor) -> bool:
    """Whether a model's outputs look like those of a soft-max, to the rounding of their dtype."""
    rounding = max(1e-3, 4 * torch.finfo(logits.dtype).eps)
    return bool((logits >= 0).all()) and float((logits.float().sum(1) - 1).abs().max()) < rounding


def objective_of(model: nn.Module, x: Tensor, y: Tensor, targeted: bool, loss: str) -> Objective:
    """The objective around the clean images x."""
    return Objective(model, y, targeted, loss, logits_of(model, x) if loss == "kl" else None)


Modes = list[tuple[nn.Module, bool]]


def modes_of(model: nn.Module) -> Modes:
    """Each part of a network with its mode."""
    return [(part, part.training) for part in model.modules()]


def put(modes: Modes) -> None:
    """Put each part into its mode."""
    for part, mode in modes:
        part.training = mode


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and every part of it back in its own mode afterwards."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    modes = modes_of(model)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        put(modes)


def are_right(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 500) -> Tensor:
    """Which images are classified rightly, in eval mode: booleans (N,)."""
    with attacked(model):
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([logits_of(model, a).argmax(1) == b for a, b in parts])


@torch.no_grad()
def check(model: nn.Module, x: Tensor, y: Tensor, loss: str = "ce") -> None:
    """Images, labels and a model that an attack can work with; ValueError says what is wrong."""
    checks.images("x", x, black=True)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
    checks.labels("y", y, len(x))
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x, {x.device}; got {y.device}")
    place = next((w.device for w in model.parameters()), x.device)
    if place != x.device:
        raise ValueError(f"x must be on the device of the model's weights, {place}; got {x.device}")
    if torch.is_inference_mode_enabled():
        raise ValueError("attacks take gradients: call them outside of torch.inference_mode()")
    few = wide(x[:8])  # enough to see what kind of model it is
    with torch.enable_grad():
        logits = model(few.to(dtype_of(model, few)).requires_grad_())
    if not isinstance(logits, Tensor):
        raise ValueError(f"model must return a tensor of logits; got {type(logits).__name__}")
    if logits.ndim != 2 or len(logits) != len(few) or logits.shape[1] < 2:
        raise ValueError(
            f"model must return logits (B, classes) of two classes or more; got "
            f"{tuple(logits.shape)}. For one logit z return torch.cat([-z, z], 1) / 2"
        )
    if not logits.requires_grad:
        raise ValueError(
            "model must be differentiable; its output does not depend on x (a no_grad or detach "
            "inside?)"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("model returns NaN or infinity on x; check its weights")
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise ValueError(
            f"y must lie in 0..{logits.shape[1] - 1}, the model's classes; "
            f"got {int(y.min())}..{int(y.max())}"
        )
    if are_probabilities(logits):
        raise ValueError(
            "model returns probabilities, where gradients vanish and hide its errors; "
            "return the logits, without the soft-max"
        )
