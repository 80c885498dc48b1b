"""Checks of what a user hands in; every message names the argument and says what was found."""

import math
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """A finite number above zero (or, with `zero`, at least zero); NumPy's and 0-d tensors too."""
    number = _plain(value)
    good = isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
    if not good or number < 0 or (number == 0 and not zero):
        least = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be a finite number {least}; got {value!r}")


def count(name: str, value: int, *, zero: bool = False) -> None:
    """A positive integer (or, with `zero`, one of at least 0); NumPy's and 0-d tensors too."""
    number = _plain(value)
    if not isinstance(number, Integral) or isinstance(number, bool) or number < (not zero):
        kind = "an integer of at least 0" if zero else "a positive integer"
        raise ValueError(f"{name} must be {kind}; got {value!r}")


def share(name: str, value: float, *, one: bool = True) -> None:
    """A number from 0 to 1 (or, without `one`, below 1)."""
    number = _plain(value)
    if not isinstance(number, Real) or not 0 <= number <= 1 or (number == 1 and not one):
        raise ValueError(f"{name} must lie in [0, 1{']' if one else ')'}; got {found(value)}")


def flags(**given: bool) -> None:
    """True or False, under the names they are given by; NumPy's and 0-d tensors too."""
    for name, value in given.items():
        if not isinstance(_plain(value), bool | np.bool_):
            raise ValueError(f"{name} must be True or False; got {found(value)}")


def instance(name: str, value: object, kind: type) -> None:
    """An object of that kind."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {one(kind)}; got {found(value)}")


def function(name: str, value: object, example: str) -> None:
    """Something that can be called as `example` shows; what a class makes may be, no class is."""
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} must be a function, such as {example}; got {found(value)}")


def found(value: object) -> str:
    """What was handed in: as it is printed, if that is short, else its kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    said = repr(value)
    short = len(said) < 80 and "\n" not in said and " at 0x" not in said
    return said if short else one(type(value))


def one(kind: type) -> str:
    """The name of a class behind its article."""
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def tensor(name: str, value: Tensor, ndim: int, layout: str) -> None:
    """A finite floating-point tensor of `ndim` dimensions, none of them empty."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch tensor {layout}; got {type(value).__name__}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must have shape {layout}; got {tuple(value.shape)}")
    if 0 in value.shape:
        raise ValueError(f"{name} is empty, a tensor of shape {tuple(value.shape)}; leave it out")
    if not value.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor; got {value.dtype}. "
            f"For pixels of 0 to 255 pass {name}.float() / 255"
        )
    if not bool(torch.isfinite(value.detach()).all()):
        bad = "NaN" if bool(value.detach().isnan().any()) else "infinite values"
        raise ValueError(f"{name} must be finite; it holds {bad}")


def images(name: str, value: Tensor, *, black: bool = False) -> None:
    """Images (B, C, H, W) in [0, 1] that each hold some mass (or, with `black`, any)."""
    tensor(name, value, 4, "(B, C, H, W)")
    low, high = float(value.detach().min()), float(value.detach().max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} must lie in [0, 1]; its values go from {low} to {high}. After "
            f"resizing or rounding pass {name}.clamp(0, 1). If they are normalised, put the "
            f"normalisation inside the model"
        )
    if not black:
        _mass(name, value, "image", "is black")


def image_pair(*, black: bool = False, **pair: Tensor) -> None:
    """Two batches of images of one shape, dtype and device, under the names they are given by."""
    (first, x), (second, z) = pair.items()
    images(first, x, black=black)
    images(second, z, black=black)
    same_shape(second, z, first, x)


def labels(name: str, value: Tensor, count: int) -> None:
    """Class numbers: an int64 tensor (count,)."""
    if not isinstance(value, Tensor) or value.shape != (count,) or value.dtype != torch.long:
        found = (
            (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value).__name__
        )
        raise ValueError(
            f"{name} must be {count} class numbers, a tensor of dtype int64 ({name}.long()); "
            f"got {found}"
        )


def are_integers(value: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor of integers, of any dtype but booleans."""
    return isinstance(value, Tensor) and not (
        value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
    )


def logits(value: object, x: Tensor) -> int:
    """What a model returned for images x, (B, classes): the number of classes."""
    if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != len(x):
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"model must return logits (B, classes) for images {tuple(x.shape)}; got {found}"
        )
    return value.shape[1]


def classes(y: Tensor, count: int) -> None:
    """Labels that are among the model's classes."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"labels must lie in 0..{count - 1}, the model's classes; got {low}..{high}. Those "
            f"that begin at 1 want y - 1; a network for more classes wants more outputs"
        )


def histograms(name: str, value: Tensor) -> None:
    """Histograms (B, n), non-negative, each with some mass."""
    tensor(name, value, 2, "(B, n)")
    low = float(value.detach().min())
    if low < 0:
        raise ValueError(f"{name} must be non-negative; its smallest value is {low:g}")
    _mass(name, value, "histogram", "is empty")


def same_shape(name: str, value: Tensor, other: str, like: Tensor) -> None:
    """The same shape, dtype and device as another argument."""
    for what in ("shape", "dtype", "device"):
        mine, theirs = getattr(value, what), getattr(like, what)
        if mine != theirs:
            raise ValueError(f"{name} must have the {what} of {other}, {theirs}; got {mine}")


def _mass(name: str, value: Tensor, kind: str, state: str) -> None:
    empty = (value.detach().flatten(1).amax(1) <= 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{name} must have mass to move; {kind} {empty[0]} {state} (sum 0). "
            f"Leave it out: no transport starts or ends there"
        )


def _plain(value: float) -> float:
    """The Python number in a 0-d tensor; anything else as it is."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
