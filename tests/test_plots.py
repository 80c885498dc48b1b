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


def test_plan_has_an_arrow_for_each_move():
    random = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 1, 4, 5, generator=random)
    cost = GroundCost(None)
    plan = TransportPlan.from_matrix(ot.exact(x, y, cost).plan, 4, 5, cost)
    ax = plots.show_plan(plan, plt.subplots()[1])
    (arrows,) = [c for c in ax.collections if hasattr(c, "U")]
    steps = cost.offsets(4, 5)
    moves = (plan.mass[0, 0] > 0) & (steps != 0).any(1)[:, None, None]
    assert len(arrows.U) == int(moves.sum())
    k = moves.nonzero()[:, 0]
    assert np.allclose(sorted(arrows.U), sorted(steps[k, 1].tolist()))
    still = TransportPlan.identity(x, GroundCost(3))
    assert not plots.show_plan(still, plt.subplots()[1]).collections


def test_images_are_drawn_with_mass_in_black_and_colour_as_it_is():
    grey, colour = torch.rand(1, 4, 5), torch.rand(3, 4, 5)
    axes = plots.show_images([grey, grey[0], colour], ["a", "b"])
    assert [ax.get_title() for ax in axes] == ["a", "b", ""]
    assert axes[2].images[0].get_array().shape == (4, 5, 3)
    assert axes[0].images[0].get_cmap()(1.0)[0] < 0.2
