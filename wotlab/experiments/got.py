"""The tables of GOT, and the same question over seeds: what does the transport term add?

Every row goes on from one network that PGD-AT has trained: the paper's learning rates are those of
fine-tuning, and from first weights its term can end in a network that is constant.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from wotlab import attacks, evaluate
from wotlab.experiments import trials
from wotlab.experiments.dro import growing
from wotlab.experiments.runner import Cell, Run, printed
from wotlab.experiments.trials import Trial, autoattack, pgd, trial
from wotlab.results import Keys
from wotlab.training import GOT, MART, PGDAT, JointCost, JointTransport, pgd_adversary

RIVALS = ("pgd-at", "trades", "mart")
VARIANTS = ("got-pgd-s", "got-trades-s", "got-pgd-lm", "got-trades-lm")
TERMS: dict[str, dict[str, Any]] = {  # what stands behind `got-pgd-` or `got-trades-`
    "s": {},
    "lm": {"match_labels": True},
    "exact": {"kind": "exact"},
    "exact-lm": {"kind": "exact", "match_labels": True},
    "divergence": {"kind": "divergence", "cost": JointCost("cosine", "l1")},
    "entropic": {"kind": "entropic"},
    "paired": {"kind": "paired"},
    "s-cos-l1": {"cost": JointCost("cosine", "l1")},
    "s-l2-kl": {"cost": JointCost("l2", "kl")},
    "s-l2-l1": {"cost": JointCost("l2", "l1")},
    "s-middle": {},
}
WEAK = 1.0  # beta of rows that end in -weak; the paper's is 10
CURES = ("got-pgd-s", "got-pgd-entropic", "got-pgd-divergence", "got-pgd-exact", "got-pgd-paired")
BETAS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0)
MIDDLE = "9"  # the last pooling of the Carlini-Wagner network
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Plan:
    """How long, and on how much.

    `first` epochs of PGD-AT with a budget that grows, by SGD from lr 0.05 (0.1 in colour), then
    `epochs` of each row at the full budget, as printed, or by Adam from `rate`. `steps` of the
    attack, on a CPU. `few`: test images for the slow attacks.
    """

    images: int | None = None
    first: int = 100
    epochs: int = 100
    batch: int = 128
    steps: int | None = None
    rate: float | None = None
    few: int | None = None

    @property
    def keys(self) -> Keys:
        """Those of its records: whether it takes all images, and epochs that a call has named."""
        named = self.images is None and self.epochs != WHOLE.epochs
        return {"whole": self.images is None} | ({"epochs": self.epochs} if named else {})


WHOLE = Plan()
SHORT = Plan(images=10_000, first=3, epochs=1, batch=50, steps=10, rate=3e-4, few=100)
OVER_SEEDS = replace(SHORT, images=20_000, epochs=2, few=300)
COLOUR = replace(SHORT, first=10, epochs=2, few=200)  # with SMALL in place of the paper's network
SMALL = "cifar-small"


@dataclass(frozen=True)
class Table:
    network: str
    data: tuple[str, ...]
    rows: tuple[str, ...]


COMPARED = ("pgd-at", "trades", *VARIANTS)
TABLES = {
    1: Table("cw-mnist", ("mnist",), (*RIVALS, *VARIANTS)),
    2: Table("resnet18", ("cifar10", "cifar100", "svhn"), COMPARED),
    3: Table("wrn-34-10", ("cifar10", "cifar100"), VARIANTS),
    4: Table("cw-mnist", ("mnist",), ("got-pgd-s-middle", "got-trades-s-middle")),
    5: Table("cw-mnist", ("mnist",), tuple(
        f"got-{inner}-s-{cost}" for inner in ("pgd", "trades")
        for cost in ("cos-l1", "l2-kl", "l2-l1")
    )),
}  # fmt: skip
SWEEPS = {6: 1, 7: 3, 8: 2}  # PGD over eps on the networks of another table
BUDGETS = {"mnist": [k / 10 for k in range(1, 8)], "colour": [k / 100 for k in range(2, 10)]}


def baseline(name: str, data: str, steps: int | None = None) -> PGDAT:
    """PGD-AT, TRADES or MART, or what a row of GOT adds its term to."""
    inner = paper_of(name, data).inner
    if steps:
        inner.attack = pgd_adversary(steps, "kl" if "trades" in name else "ce")
    return MART(inner.ball, attack=inner.attack) if name == "mart" else inner


def paper_of(name: str, data: str) -> GOT:
    return GOT.paper("GOT-TRADES-S" if "trades" in name else "GOT-PGD-S", data)


def defense(name: str, data: str, steps: int | None = None) -> PGDAT | GOT:
    """A row by its name, with the paper's settings, or with an attack of fewer steps."""
    inner, paper = baseline(name, data, steps), paper_of(name, data)
    if not name.startswith("got"):
        return inner
    term = name.split("-", 2)[2].removesuffix("-weak")
    return GOT(
        inner, JointTransport(**TERMS[term]), alpha=paper.alpha, clean=paper.clean,
        beta=WEAK if name.endswith("-weak") else paper.beta,
        latent=MIDDLE if term == "s-middle" else None,
    )  # fmt: skip


def optimizer(data: str, name: str, rate: float | None, model: nn.Module) -> Optimizer:
    """Adam, which the weight of a term does not hurry as it does SGD; without a rate as printed."""
    if data == "mnist" or rate:
        return Adam(model.parameters(), rate or (1e-6 if name.endswith("lm") else 1e-3))
    return torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=2e-4)


def rows_of(
    what: str, network: str, data: str, names: tuple[str, ...], plan: Plan, seed: int | None = None
) -> Iterator[Trial]:
    """The network that all start from, and the rows; a seed is among their keys."""
    whole, ball = plan.images is None, baseline("pgd-at", data).ball
    strong = {"pgd-40": pgd(40, 0.01, restarts=1)} if data == "mnist" else {
        "pgd-20": pgd(20, ball.eps / 4, restarts=1)
    }  # fmt: skip
    judges = strong | {
        "autoattack": autoattack() if whole else autoattack("apgd-ce", "apgd-t"),
        "square": partial(attacks.library, name="square", n_queries=5000 if whole else 1000),
    }
    first = baseline("pgd-at", data, plan.steps)
    first.eps = growing(ball, plan.first)
    head: Keys = {} if data == "mnist" else {"data": data}
    tail = ({} if seed is None else {"seed": seed}) | plan.keys
    start = Trial(
        what, head | {"training": "start"} | tail, network, ball, first, plan.first, judges,
        images=plan.images, batch=plan.batch, lr=0.05 if data == "mnist" else 0.1,
        augment=data != "mnist", seed=seed or 0, few=plan.few,
    )  # fmt: skip
    yield start
    for name in names:
        yield replace(
            start, keys=head | {"training": name} | tail, epochs=plan.epochs, start=start, lr=0.05,
            defense=defense(name, data, plan.steps),
            optimizer=partial(optimizer, data, name, plan.rate),
        )  # fmt: skip


def plan_of(run: Run, short: Plan = SHORT) -> Plan:
    """On a GPU the paper's; where a call names epochs, all images so often, after half as many."""
    if run.epochs:
        return replace(WHOLE, first=-(-run.epochs // 2), epochs=run.epochs)
    return WHOLE if run.whole else short


def table(number: int, run: Run) -> Iterator[Cell]:
    """Tables 1 to 5. What 4 and 5 do not train is in table 1."""
    which, what = TABLES[number], f"got-table-{1 if number > 3 else number}"
    for data in which.data:
        for row in rows_in(what, which, which.rows, data, run):
            yield from trial(replace(run, dataset=data), replace(row, printed=("got", number)))


def rows_in(
    what: str, table: Table, names: tuple[str, ...], data: str, run: Run
) -> Iterator[Trial]:
    """Rows of a table on one data set; in colour a small network where there is no GPU."""
    plan = plan_of(run, SHORT if data == "mnist" else COLOUR)
    small = data != "mnist" and not run.whole
    return rows_of(what, SMALL if small else table.network, data, names, plan)


def sweep(number: int, run: Run) -> Iterator[Cell]:
    """Tables 6 to 8: as printed, PGD that moves k * step at most, and PGD that can use its eps."""
    base = TABLES[SWEEPS[number]]
    for data in base.data:
        names = tuple(name for name in base.rows if name in COMPARED)
        rows = list(rows_in(f"got-table-{SWEEPS[number]}", base, names, data, run))
        here = replace(run, dataset=data).first(rows[0].few)
        steps, step = (40, 0.01) if data == "mnist" else (20, 0.003)
        budgets = BUDGETS.get(data, BUDGETS["colour"])
        protocols: dict[str, Callable] = {
            "printed": partial(attacks.pgd, steps=steps, step_size=step),
            "free": pgd(steps, partial(longer, step), restarts=1),
        }
        for row in rows[1:]:
            for protocol, attack in protocols.items():
                curve = cache(partial(curve_of, here, row, attack, budgets))
                for eps in budgets:
                    keys = row.keys | {"protocol": protocol, "eps": eps}
                    yield Cell(
                        f"got-table-{number}", keys, here, partial(point, eps), curve,
                        seed=row.seed,
                        **(printed("got", number, keys, data) if protocol == "printed" else {}),
                    )  # fmt: skip


def curve_of(
    run: Run, row: Trial, attack: Callable, budgets: list[float]
) -> tuple[dict[float, evaluate.Share], dict]:
    """What one attack leaves of a trained network at each eps, and what the training took."""
    model, details = trials.train(run, row)
    curve = evaluate.accuracy_curve(model, *run.test_images(), attack, row.ball, budgets)
    return dict(zip(budgets, curve.shares, strict=True)), details


def point(
    eps: float, curve: dict[float, evaluate.Share], details: dict
) -> tuple[evaluate.Share, dict]:
    return curve[eps], details


def longer(step: float, x: Tensor, eps: float) -> float:
    """A step with which PGD can cross the ball."""
    return max(step, eps / 10)


def over_seeds(run: Run) -> Iterator[Cell]:
    """Does the term help under AutoAttack, beyond the noise of seeds, and which part of it?

    Wong's network. `paired` has no transport, `exact` no entropic bias.
    """
    weak = ("got-pgd-s-weak", "got-trades-s-weak", "got-pgd-exact-weak")
    names = (*RIVALS, *VARIANTS, "got-pgd-paired", "got-pgd-exact", *weak)
    plan = plan_of(run, OVER_SEEDS)
    for seed in SEEDS:
        rows = list(rows_of("got-over-seeds", "wong-mnist", "mnist", names, plan, seed))
        other = replace(rows[0], seed=seed + 100, keys=rows[0].keys | {"other": True})
        moved = partial(transferred, run, cache(partial(aimed, run, other)))
        for row in rows:
            yield from trial(run, replace(row, judges=row.judges | {"transfer": moved}))


def cures(run: Run) -> Iterator[Cell]:
    """Is it the entropy or the learned potential? The term solved, debiased, exact, and by class.

    Wong's network; all at the paper's beta.
    """
    names = ("pgd-at", *CURES, "got-pgd-lm", "got-pgd-exact-lm")
    for seed in SEEDS:
        for row in rows_of(
            "got-cures", "wong-mnist", "mnist", names, plan_of(run, OVER_SEEDS), seed
        ):
            yield from trial(run, row)


def betas(run: Run) -> Iterator[Cell]:
    """GOT-PGD-S with other weights of its term, from the networks that `cures` starts from."""
    plan = plan_of(run, OVER_SEEDS)
    for seed, beta in product(SEEDS, BETAS):
        *_, row = rows_of("got-cures", "wong-mnist", "mnist", ("got-pgd-s",), plan, seed)
        keys = {"beta": beta, "seed": seed} | plan.keys
        defense = replace(row.defense, beta=beta)
        yield from trial(run, replace(row, what="got-beta", keys=keys, defense=defense))


def aimed(run: Run, other: Trial) -> attacks.AttackResult:
    """PGD-40 on another network, which is trained where it is asked for."""
    source, _ = trials.train(run, other)
    return attacks.pgd(
        source, *run.test_images(), other.ball, steps=40, step_size=0.01, early_stop=False
    )


def transferred(
    run: Run, made: Callable[[], attacks.AttackResult], model: nn.Module, x: Tensor, y: Tensor,
    ball: Any,
) -> attacks.AttackResult:  # fmt: skip
    """What was made once of all test images, on a model: at x, those that it reads rightly."""
    done = attacks.transfer(
        model, *run.test_images(), ball, source=model, attack=lambda *given: made()
    )
    kept: dict[str, Any] = {
        k: v[~done.misread] for k, v in vars(done).items() if isinstance(v, Tensor)
    }
    return replace(done, **kept)
