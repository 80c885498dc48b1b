"""Check a reader's number without showing the right one."""

import hashlib
import math

__all__ = ["check", "seal"]


def _hash(number: int, decimals: int) -> str:
    salted = f"moving mass: {number} at {decimals}"
    return hashlib.sha256(salted.encode()).hexdigest()[:16]


def seal(right: float, decimals: int = 2) -> str:
    """What a cell may show of the right answer: a salted hash of it, rounded.

    Parameters
    ----------
    right : float
    decimals : int
        How many of them are asked for; a reader's may be off by one in the last.

    Returns
    -------
    str
        For `check`.

    Raises
    ------
    ValueError
        For a number that is not finite.

    Examples
    --------
    >>> import math
    >>> from wotlab.exercises import seal
    >>> seal(math.pi)
    '2-651f667277f8f59e'
    """
    if not math.isfinite(right):
        raise ValueError(f"right must be a finite number; got {right}")
    return f"{decimals}-{_hash(round(right * 10**decimals), decimals)}"


def check(answer: float | None, sealed: str) -> None:
    """Print whether a reader's number is right.

    Parameters
    ----------
    answer : float or None
        None, as the exercise stands, prints that it waits.
    sealed : str
        By `seal`.

    Raises
    ------
    ValueError
        For an answer that is no finite number, or a `sealed` that no `seal` made.

    Examples
    --------
    >>> import math
    >>> from wotlab.exercises import check, seal
    >>> check(3.14, seal(math.pi))
    Right.
    """
    if answer is None:
        print("Waiting for your number.")
        return
    if not math.isfinite(float(answer)):
        raise ValueError(f"answer must be a finite number; got {answer}")
    start, _, hidden = sealed.partition("-")
    if not start.isdigit() or not hidden:
        raise ValueError(f"sealed must be made by seal(); got {sealed!r}")
    decimals = int(start)
    near = round(float(answer) * 10**decimals)
    right = hidden in (_hash(near + off, decimals) for off in (-1, 0, 1))
    print("Right." if right else "Not yet. Try again, or unfold the solution.")
