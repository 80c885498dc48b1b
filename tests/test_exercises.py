"""The checker of the exercises: right to the last decimal or one beside it; it tells nothing."""

import contextlib
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wotlab import exercises


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_what_rounds_to_the_right_number_is_right_and_a_neighbour_too(right, decimals):
    sealed = exercises.seal(right, decimals)
    last = 10.0**-decimals
    for answer, verdict in ((right, True), (right + 0.9 * last, True), (right - 2.1 * last, False)):
        assert told(answer, sealed).startswith("Right") is verdict


def told(answer, sealed):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exercises.check(answer, sealed)
    return out.getvalue()


def test_a_seal_does_not_show_its_number():
    assert len(exercises.seal(0.25)) == 18
    assert exercises.seal(0.25) != exercises.seal(0.25, 3) != exercises.seal(0.26, 3)
    # the hash that chapters store: another salt would make every answer wrong
    assert exercises.seal(0.25) == "2-13b78af82a0bac97"


def test_without_an_answer_it_waits():
    assert told(None, exercises.seal(1)) == "Waiting for your number.\n"


def test_bad_input_is_named():
    for answer in (math.nan, math.inf):
        with pytest.raises(ValueError, match="answer must be a finite number"):
            exercises.check(answer, exercises.seal(1))
    with pytest.raises(ValueError, match="sealed must be made by seal"):
        exercises.check(1.0, "0.25")
    with pytest.raises(ValueError, match="right must be a finite"):
        exercises.seal(math.inf)
