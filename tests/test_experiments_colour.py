"""The CIFAR-10 halves of two papers' tables: which cell answers what, and how far budgets go."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from wotlab import results
from wotlab.experiments import colour, hu
from wotlab.experiments.reproductions import question
from wotlab.experiments.runner import Dry

DRY = Dry(Path(), Path(), Path(), 1000, torch.device("cpu"), False)


@pytest.mark.parametrize(
    ("paper", "cells"), [("hu", colour.table), ("subramanyam", colour.unbalanced)]
)
def test_each_printed_number_of_colour_has_its_cell(paper, cells):
    tables = {"hu": "1 3 4 5 6", "subramanyam": "1"}[paper].split()
    printed = {
        question({"paper": paper} | row)
        for row in results.printed(paper, data="cifar10")
        if row["table"] in tables and row["metric"] in ("accuracy", "w", "l2")
    }
    found = [cell for part in (colour.table, colour.unbalanced) for cell in part(DRY)]
    answered = {question(row) for cell in found for row in cell.answers}
    assert printed and printed <= answered
    names = Counter((cell.what, cell.name) for cell in cells(DRY))
    assert set(names.values()) == {1}


def test_our_defended_network_stands_for_both_of_theirs_and_says_so():
    for cell in colour.table(DRY):
        theirs = {row["network"] for row in cell.answers}
        assert theirs <= set(colour.THEIRS.get(cell.keys.get("network"), {""}))
        if theirs - {""}:
            assert cell.details["network"] == colour.NETWORK
    assert colour.THEIRS[colour.OURS] == ("wong2019", "hu2020")


def test_standardised_distances_see_what_is_brighter_than_the_mean():
    x = torch.full((1, 3, 4, 4), 0.3).double()
    x[0, :, 1, 1] = 0.9
    z = x.roll(1, 3)
    assert float(hu.above(x, z)) == pytest.approx(1)  # of the bright pixel alone
    assert float(hu.moved(x, z)) < 0.5
    change = [2**0.5 * 0.6 / d for d in hu.DEVIATION]
    assert float(hu.apart(x, z)) == pytest.approx(sum(c**2 for c in change) ** 0.5)
    assert hu.above(x, torch.full_like(x, 0.3)).isnan()


def test_budgets_grow_by_a_factor():
    eps = [colour.grow(t) * hu.PIXELS["cifar10"] for t in range(hu.STEPS)]
    assert eps[0] == pytest.approx(4) and eps[-1] == pytest.approx(1600)
    assert max(b / a for a, b in pairwise(eps)) < 1.031
    assert colour.budget(0) == pytest.approx(colour.EPS / 100)
    last = colour.EPOCHS[colour.OURS]
    assert colour.budget(last - 1) == colour.budget(last) == colour.EPS


def test_an_images_radius_is_the_eps_of_its_step(run, small, monkeypatch):
    """Of any schedule; an image that is misread from the start has none to lose."""
    monkeypatch.setattr(hu, "STEPS", 30)
    growth = lambda t: 0.01 * 1.2**t  # noqa: E731
    model, x, y = run.named("standard")
    mean, details = hu.radii(hu.ATTACKS["hu"], growth, model, x, y)
    allowed = [0.0, *(round(growth(t), 5) for t in range(30))]
    found = details["radii"]
    assert all(r is None or min(abs(r - a) for a in allowed) < 1e-5 for r in found)
    right = [growth(29) if r is None else r for r in found if r != 0]
    assert mean == pytest.approx(sum(right) / len(right), rel=1e-3)
