"""What networks answer: logits in the images' dtype, who is right, whether they can be attacked."""

import torch
from torch import Tensor, nn

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab._base.precision import full_precision


def dtype_of(model: nn.Module, z: Tensor) -> torch.dtype:
    """The dtype of a model's weights; that of its images where it has none."""
    weights = (w for w in model.parameters() if w.is_floating_point())
    return next((w.dtype for w in weights), z.dtype)


def logits_of(model: nn.Module, z: Tensor) -> Tensor:
    """Logits in the dtype of the images, which the model sees in its own."""
    return model(z.to(dtype_of(model, z))).to(z.dtype)


def divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """KL(p | q) of the classes' probabilities, from logits (B, classes): (B,)."""
    p, q = clean.log_softmax(1), moved.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def are_probabilities(logits: Tensor) -> bool:
    """Whether a model's outputs look like those of a soft-max, to the rounding of their dtype."""
    rounding = max(1e-3, 4 * torch.finfo(logits.dtype).eps)
    return bool((logits >= 0).all()) and float((logits.float().sum(1) - 1).abs().max()) < rounding


def are_right(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 500) -> Tensor:
    """Which images are classified correctly, in eval mode: booleans (N,)."""
    with eval_mode(model):
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([logits_of(model, a).argmax(1) == b for a, b in parts])


def are_together(model: nn.Module, x: Tensor) -> None:
    """Images on the device of the model's weights."""
    place = next((w.device for w in model.parameters()), x.device)
    if place != x.device:
        raise ValueError(f"x must be on the device of the model's weights, {place}; got {x.device}")


@torch.no_grad()
def check(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Images, labels and a model that an attack can work with; ValueError says what is wrong."""
    checks.images("x", x, black=True)
    checks.labels("y", y, len(x))
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x, {x.device}; got {y.device}")
    are_together(model, x)
    if torch.is_inference_mode_enabled():
        raise ValueError("attacks take gradients: call them outside of torch.inference_mode()")
    few = full_precision(x[:8])  # enough to see what kind of model it is
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
