"""Figures: the same bytes each time, and something to read for those who do not see them."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from wotlab import GroundCost, TransportPlan, ot, plots

mpl.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def clean_style():
    with mpl.rc_context():
        yield
    plt.close("all")


def picture(seed=0):
    plots.use_style()
    fig, ax = plt.subplots()
    ax.plot(np.random.default_rng(seed).random(5), label="line")
    ax.legend()
    return fig


def test_figures_are_the_same_bytes_each_time():
    first, again, other = (plots._svg(picture(seed)) for seed in (0, 0, 1))
    assert first == again and first != other


def test_slider_shows_one_frame_and_describes_each():
    labels = ["reg = 0.1", "reg < 1", 'reg "2"']
    slider = plots.Slider(
        [picture(k) for k in range(3)], labels, name="Weight", alt="Plan.", start=1
    )
    page = BeautifulSoup(slider._repr_html_(), "html.parser")
    frames = page.find_all("img")
    assert [f["alt"] for f in frames] == [f"Plan. {label}" for label in labels]
    assert [f.has_attr("hidden") for f in frames] == [True, False, True]
    assert page.find("input")["max"] == "2" and page.find("output").text == "reg < 1"
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="labels"):
        plots.Slider([picture()], ["a", "b"], name="", alt="")


def test_a_table_shows_each_cell_as_it_is_said():
    made = plots.Table(["a < b", "share"], [["x & y", 0.5], ["", "1 %"]])
    page = BeautifulSoup(made._repr_html_(), "html.parser")
    assert [cell.text for cell in page.find_all("th")] == ["a < b", "share"]
    assert [[c.text for c in r.find_all("td")] for r in page.tbody.find_all("tr")] == [
        ["x & y", "0.5"],
        ["", "1 %"],
    ]
    assert page.find("details") is None
    folded = plots.Table([5], [["b"]], folded="numbers > 0")
    page = BeautifulSoup(folded._repr_html_(), "html.parser")
    assert page.details.summary.text == "numbers > 0" and page.details.table.th.text == "5"
    assert not page.details.has_attr("open")
    with pytest.raises(ValueError, match="rows must have 2 cells"):
        plots.Table(["a", "b"], [["a", "b"], ["a"]])


def moves_of(plan):
    mass = plan.mass[0, 0]
    steps = plan.ground_cost.offsets(*mass.shape[1:])
    k, row, column = (mass * (steps != 0).any(1)[:, None, None]).nonzero(as_tuple=True)
    start = torch.stack([column, row], 1).double()
    return start, start + steps[k].flip(1), mass[k, row, column].double()


def drawn(plan, **options):
    """Start, end and half the width of the head of each arrow, in x and y."""
    ax = plots.show_plan(plan, plt.subplots()[1], **options)
    if not ax.collections:
        return np.empty((0, 2)), np.empty((0, 2)), np.empty(0)
    rims, arrows = ax.collections
    outlines = np.array([path.vertices[:7] for path in arrows.get_paths()])
    assert np.array_equal(outlines, [path.vertices[:7] for path in rims.get_paths()])
    wing = np.linalg.norm(outlines[:, 2] - outlines[:, 4], axis=1) / 2
    return (outlines[:, 0] + outlines[:, 6]) / 2, outlines[:, 3], wing


def plan_between(h, w, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 1, 1, h, w, generator=random, dtype=torch.double)
    cost = GroundCost(None)
    return TransportPlan.from_matrix(ot.exact(x, y, cost).plan, h, w, cost)


def test_plan_has_an_arrow_for_each_move():
    plan = plan_between(4, 5)
    start, end, mass = moves_of(plan)
    from_, to, wing = drawn(plan)
    assert np.allclose(from_, start) and np.allclose(to, end)
    assert (np.diff(wing[mass.argsort().numpy()]) >= -1e-12).all() and wing.max() == pytest.approx(
        0.6
    )
    far = mass > 0.5 * mass.max()
    assert np.allclose(drawn(plan, least=0.5)[1], end[far])
    assert not len(drawn(TransportPlan.identity(torch.rand(1, 1, 4, 5), GroundCost(3)))[0])


@pytest.mark.parametrize("most", [60, 20, 3])
def test_arrows_of_neighbours_are_drawn_as_one_until_they_are_few(most):
    plan = plan_between(20, 20)
    start, end, mass = moves_of(plan)
    assert len(mass) > 150
    from_, to, _ = drawn(plan, most=most)
    assert 0 < len(from_) <= most
    if most > 8:  # no mass is left out: starts, ends and masses agree on where all of it goes
        a, b, total = plots._grouped(start.flip(1).numpy(), end.flip(1).numpy(), mass.numpy(), most)
        assert np.allclose(a, from_[:, ::-1]) and np.allclose(b, to[:, ::-1])
        assert total.sum() == pytest.approx(mass.sum())
        assert np.allclose(total @ (b - a), mass @ (end - start).flip(1))
    with pytest.raises(ValueError, match="most"):
        plots.show_plan(plan, plt.subplots()[1], most=0)


def test_zoom_cuts_the_border_but_no_arrow():
    x = torch.zeros(1, 1, 12, 16)
    x[0, 0, 4, 5] = 1
    plan = TransportPlan.identity(x, GroundCost(5))
    mass = torch.zeros_like(plan.mass)
    mass[0, 0, -1] = x[0, 0]  # all of it two down and two to the right
    plan = TransportPlan(mass, plan.ground_cost)
    ax = plots.show_plan(plan, plt.subplots()[1], zoom=True)
    assert ax.get_xlim() == (3.5, 8.5) and ax.get_ylim() == (7.5, 2.5)
    assert plots.show_plan(plan, plt.subplots()[1]).get_xlim() == (-0.5, 15.5)


def test_images_are_drawn_with_mass_in_black_and_colour_as_it_is():
    grey, colour = torch.rand(1, 4, 5), torch.rand(3, 4, 5)
    axes = plots.show_images([grey, grey[0], colour], ["a", "b"])
    assert [ax.get_title() for ax in axes] == ["a", "b", ""]
    assert axes[2].images[0].get_array().shape == (4, 5, 3)
    assert axes[0].images[0].get_cmap()(1.0)[0] < 0.2
