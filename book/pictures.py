"""Draw the pictures of README.md: `python book/pictures.py`.

One shows what an attack does to a digit, the other how many images stand
as the budget grows, from the records. Both are white cards, which read
on the light and on the dark pages of a code host.
"""

from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import wotlab
from wotlab import GroundCost, TransportPlan, ot, plots, results
from wotlab.evaluate import share
from wotlab.experiments import strength

FOLDER = Path(__file__).parent / "_static"
ATTACK, STRENGTH = FOLDER / "attack.svg", FOLDER / "strength.svg"
RECORDS = FOLDER.parents[1] / "results"
EPS, DIGIT = 0.15, 15  # as on the first page of the book

NETWORKS = {
    "standard": "standard",
    "wong2019": "Wong et al., robust",
    "hu2020": "Hu et al., robust",
    "ours": "WassersteinAT",
    "pgd-at": "l-infinity PGD-AT",
}
CURVES = {  # label and look of each attack
    "transport": ("transport", plots.SOURCE, "-"),
    "radius": ("radius", plots.TARGET, "--"),
    "mirror": ("mirror_ascent", plots.MOVED, "-."),
    "frank-wolfe": ("frank_wolfe, repaired", "#e08214", "-"),
    "frank-wolfe-published": (
        "frank_wolfe, as published", plots.NEUTRAL, ":",
    ),
    "printed": ("Hu et al., as printed", "black", "x"),
}  # fmt: skip

# eps * 784, then % with its interval
Point = tuple[float, float, float, float]


def attacked() -> tuple:
    """A digit and its label, the attacked digit, and how that is read."""
    x, y = wotlab.data.load("mnist-5k", "test").tensors([DIGIT])
    network = wotlab.models.load("mnist-standard").double()
    moved = wotlab.attacks.mirror_ascent(
        network, x.double(), y, wotlab.WassersteinBall(EPS),
        steps=40, early_stop=False,
    ).x_adv  # fmt: skip
    return x.double(), y.item(), moved, network(moved).argmax().item()


def draw_attack() -> plt.Figure:
    """The digit, where its ink goes, and what is read then."""
    x, label, moved, read = attacked()
    cost = GroundCost(window=None)
    matrix = ot.exact(x, moved, cost).plan
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.7))
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    titles = [f"a digit: {label}", f"read as: {read}"]
    plots.show_images([x[0], moved[0]], titles, axes=axes[[0, 2]])
    plan = TransportPlan.from_matrix(matrix, 28, 28, cost)
    plots.show_plan(plan, axes[1], most=60)
    axes[1].set_title("its ink moves")
    return figure


def curves() -> dict[tuple[str, str], list[Point]]:
    """By (network, attack), from the records: a point for each budget.

    An interval is of 95 %. What a paper prints has none, and NaN there.
    """
    table = partial(results.table, folder=RECORDS)
    keys, found = ("network", "attack", "budget"), {}
    records = table(strength.WHAT["mnist"], *keys)
    for (network, attack, budget), record in sorted(records.items()):
        point = (budget, record.value, *record.interval)
        found.setdefault((network, attack), []).append(point)
        if record.printed is not None:
            nan = float("nan")
            point = (budget, record.printed, nan, nan)
            found.setdefault((network, "printed"), []).append(point)
    ours = table(strength.RADII, "network", side="attack")
    for network, record in ours.items():
        radii = record.details["radii"]
        for budget in strength.BUDGETS["mnist"]:
            stand = sum(r is None or 784 * r > budget for r in radii)
            part = share(stand, len(radii))
            rates = (100 * r for r in (part.value, part.low, part.high))
            point = (budget, *rates)
            found.setdefault((network, "radius"), []).append(point)
    return found


def draw_strength() -> plt.Figure:
    """Accuracy over the budget, a panel a network, a curve an attack."""
    found, budgets = curves(), strength.BUDGETS["mnist"]
    figure, axes = plt.subplots(  # the same places with any version
        2, 3, figsize=(9, 5.4), sharey=True, layout="none"
    )
    figure.subplots_adjust(0.07, 0.1, 0.98, 0.94, 0.1, 0.42)
    handles = {}
    for ax, (network, title) in zip(
        axes.flat, NETWORKS.items(), strict=False
    ):
        for attack, (label, colour, look) in CURVES.items():
            if (network, attack) not in found:
                continue
            at, value, low, high = zip(
                *found[network, attack], strict=True
            )
            (handles[label],) = ax.plot(
                at, value, look, color=colour, label=label,
                lw=1.3, gid=f"{network} {attack}",
            )  # fmt: skip
            if look != "x":
                ax.fill_between(
                    at, low, high, color=colour, alpha=0.13, lw=0
                )
        ax.set(title=title, xscale="log", xlim=(4.5, 1800), ylim=(0, 102))
        ax.set_xticks(budgets[::2], budgets[::2])
        ax.minorticks_off()
        ax.set_xlabel(r"$\varepsilon \times 784$")
    axes[0, 0].set_ylabel("accuracy, %")
    axes[1, 0].set_ylabel("accuracy, %")
    axes[1, 2].set_axis_off()
    axes[1, 2].legend(handles.values(), handles, loc="center")
    return figure


def main() -> None:
    plots.use_style()
    for path, draw in ((ATTACK, draw_attack), (STRENGTH, draw_strength)):
        draw().savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
