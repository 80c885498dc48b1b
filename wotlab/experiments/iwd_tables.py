"""Tan et al.'s tables 1 to 3, and their weight beta of the clean images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor

from wotlab import attacks
from wotlab.balls import InternalWassersteinBall, WassersteinBall
from wotlab.experiments import iwd_attacks
from wotlab.experiments.iwd_networks import (
    DEFENSES,
    INTERNAL,
    LINF,
    STEPS,
    Setting,
    iwdd,
    settings,
)
from wotlab.experiments.runner import Run
from wotlab.experiments.trials import Trial, trial
from wotlab.results import printed

SOURCE = "Tan et al., table "
NEAR = iwd_attacks.NUMBERS * LINF.eps  # what l-infinity attacks of 8/255 may spend
ROWS = {1: ("natural", "free", "fast"), 2: ("pgd", "trades")}
COLUMNS = {1: tuple(iwd_attacks.ATTACKS), 2: ("fgsm", "adef", "fwadv", "iwda", "direct")}
BETAS = (0.01, 1.0)  # 0.1, the paper's, is table 3's
MANY = 500  # test images of table 3, as its entries suggest
BUDGETS = {
    "pgd-10": LINF,
    "fwadv": WassersteinBall(0.005),
    "direct": InternalWassersteinBall(INTERNAL.eps),
}
JUDGES = {
    "pgd-10": partial(attacks.pgd, steps=10),
    "fwadv": lambda model, x, y, _: attacks.frank_wolfe(model, x, y, BUDGETS["fwadv"], steps=100),
    "direct": lambda model, x, y, _: attacks.pgd(model, x, y, iwd_attacks.ball(INTERNAL.eps, x)),
}
CELLS = ("clean", *JUDGES)  # of a row of table 3


def success(number: int, run: Run) -> None:
    """Tables 1 and 2: the share of rightly read images that each attack breaks.

    As the paper counts: within l-infinity 8/255 and the budgets that belong to it, attacks without
    a budget at any distance. And again, ending in "-within", what ended no farther than NEAR.
    """
    for setting in settings(run.first(iwd_attacks.FEW)):
        for row in ROWS[number]:
            attack_row(number, setting, row)


def attack_row(number: int, setting: Setting, row: str) -> None:
    """One network under all attacks; one without a defense also towards classes drawn at random."""
    undefended = row == "natural"
    model, x, y, counted = iwd_attacks.right_ones(
        setting, setting.undefended if undefended else row
    )
    kinds = ("untargeted", "targeted") if undefended else ("untargeted",)
    for name, kind in product(COLUMNS[number], kinds):
        aim = {"targeted": True} if kind == "targeted" else {}
        classes = model(x[:1]).shape[1]
        done = cache(
            partial(
                iwd_attacks.perform, name, model, x, another(y, classes) if aim else y, NEAR, **aim
            )
        )
        for suffix, d in (("", float(iwd_attacks.NUMBERS)), ("-within", NEAR)):

            def broken(done=done, d=d):
                counts = iwd_attacks.near(done(), d)
                return iwd_attacks.hits(counts), iwd_attacks.sizes(x, counts) | counted

            theirs = None if suffix else of_paper(number, setting, row, attack=name, kind=kind)
            setting.run.number(
                f"iwd-table-{number}", f"{setting.case(row)}-{name}-{kind}{suffix}", "%",
                broken, seed=0, printed=theirs, source=theirs and f"{SOURCE}{number}",
            )  # fmt: skip


def another(y: Tensor, classes: int) -> Tensor:
    """A class for each image that is not its own."""
    step = torch.randint(1, classes, y.shape, generator=iwd_attacks.generator())
    return (y + step.to(y.device)) % classes


def of_paper(number: int, setting: Setting, row: str, **where: str) -> float | None:
    """The paper's number, for its own networks and data alone."""
    where |= {"network": setting.network, "data": setting.run.dataset, "training": row}
    rows = printed("iwd", table=str(number), **where)
    return float(rows[0]["value"]) if rows else None


def defend(run: Run) -> None:
    """Table 3: accuracies of each defense, on clean images and under three attacks."""
    for setting in settings(run.first(MANY)):
        for name in DEFENSES:
            cells = {each: of_paper(3, setting, name, attack=each) for each in CELLS}
            theirs = {each: value for each, value in cells.items() if value is not None}
            judged(setting, replace(setting.trial(name), printed=theirs, source=f"{SOURCE}3"))


def beta(run: Run, betas: Sequence[float] = BETAS) -> None:
    """IWDD's weight of the clean images."""
    for setting, weight in product(settings(run.first(MANY)), betas):
        row = setting.trial("iwdd", iwdd(10 if setting.whole else STEPS, weight))
        judged(setting, replace(row, what="iwd-beta", case=setting.case(f"beta-{weight:g}")))


def judged(setting: Setting, row: Trial) -> None:
    trial(setting.run, replace(row, judges=JUDGES, budgets=BUDGETS))
