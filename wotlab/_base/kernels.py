"""Whether to trust a kernel that Triton compiles in place of PyTorch."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

Numbers = tuple[Tensor, ...]


def agrees(
    what: str, kernel: Callable[[], Numbers], wanted: Numbers, rtol: float, atol: float
) -> bool:
    """Whether a kernel runs and gives what is wanted; where Triton is there and it does not, why.

    Triton wants a C compiler and a GPU that is not too old.
    """
    if find_spec("triton") is None:
        return False
    try:
        pairs = zip(kernel(), wanted, strict=True)
        wrong = "" if all(torch.allclose(*pair, rtol, atol) for pair in pairs) else "it is wrong"
    except Exception as error:  # whatever Triton, its compiler or the driver raise
        wrong = str(error)
    if wrong:
        warnings.warn(f"PyTorch computes {what}, Triton does not: {wrong}", stacklevel=4)
    return not wrong
