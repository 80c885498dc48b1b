"""The CIFAR-10 halves of Hu's tables and of Subramanyam's first, on small networks of our own.

The papers' networks were not published. One without a defense is trained here, and one by mirror
ascent at budgets that grow a hundredfold, as Hu's do, which stands for both that Wong et al. and
Hu et al. defend.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

from torch import Tensor, nn

from wotlab import GroundCost, attacks, evaluate, models, training
from wotlab.balls import WassersteinBall
from wotlab.experiments import got, hu, subramanyam
from wotlab.experiments.runner import Cell, Run, answers
from wotlab.experiments.trials import adam, fitted
from wotlab.projections import constrained_sinkhorn
from wotlab.results import Keys

DATA, NETWORK = "cifar10", got.SMALL
EPS = 20 / hu.PIXELS[DATA]
FEW, GROWN = 200, 100  # images whose exact distances are asked for; whose eps grows
OURS = "wasserstein-at"
# By the printed stop test, of the total mass alone, an image costs 165 times its eps in the mean
SOLVED = partial(constrained_sinkhorn, tol=1e-3)
THEIRS = {"standard": ("standard",), OURS: ("wong2019", "hu2020")}  # whom a network stands for
EPOCHS = {"standard": 6, OURS: 4}


def budget(epoch: float) -> float:
    """eps: grows a hundredfold up to the last epoch."""
    return EPS * 100 ** (min(1.0, epoch / (EPOCHS[OURS] - 1)) - 1)


def grow(t: int) -> float:
    """eps at step t of an attack, from 4 to 1600 in units of the papers' budgets.

    By the same factor at each step: at the printed 0.01 a step it passes their smallest at once.
    """
    return 4 * 400 ** (t / (hu.STEPS - 1)) / hu.PIXELS[DATA]


def trained(run: Run, name: str) -> nn.Module:
    """One of ours, on all training images."""
    attack = partial(attacks.mirror_ascent, steps=3, step_size=16.0, early_stop=False)
    defenses = {
        "standard": training.Standard(),
        OURS: training.WassersteinAT(WassersteinBall(EPS, GroundCost(5)), budget, attack),
    }
    epochs = EPOCHS[name]
    path = run.checkpoints / f"hu-{DATA}-{name}.safetensors"
    model = models.build(NETWORK, seed=0).to(run.device)
    return fitted(
        model, run.load("train").tensors(), defenses[name], path, epochs=epochs, batch_size=128,
        optimizer=adam, schedule=lambda epoch: max(0.0, 1 - epoch / epochs),
    )[0]  # fmt: skip


def named(run: Run, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """One of ours, or a released network, and the test images."""
    model = trained(run, name) if name in THEIRS else run.network(name)
    return model, *run.test_images()


def told(paper: str, numbers: tuple[int, ...], name: str, keys: Keys) -> dict:
    """Of a cell: which printed numbers a network's answers, for all whom it stands for."""
    theirs = [
        row
        for number in numbers
        for other in THEIRS.get(name, ())
        for row in answers(paper, number, keys | {"network": other}, DATA)
    ]
    ours = {"network": NETWORK, "epochs": EPOCHS[name]} if name in THEIRS else {}
    return {"answers": theirs, "details": ours}


def table(run: Run) -> Iterator[Cell]:
    """Tables 1, 3, 4, 5 and 6 of Hu et al."""
    run = replace(run, dataset=DATA)
    few, names = run.first(GROWN), (*THEIRS, *run.networks())
    one, three, five = (hu.ROWS[number][1] for number in (1, 3, 5))
    for name in names:
        given = cache(partial(named, few, name))
        for kind in dict.fromkeys(three + five if name == OURS else one):
            keys: Keys = {"network": name, "attack": kind}
            theirs = told("hu", (1, 3, 5), name, keys)
            options, rule = hu.ATTACKS[kind], "dual"
            if kind != "wong":  # who has a projection of his own
                options, rule = options | {"projection": SOLVED}, f"plan, {SOLVED.keywords['tol']}"
            theirs["details"] |= {"stop_test": rule}
            yield Cell(
                f"hu-growing-{DATA}", keys, few, partial(hu.radii, options, grow), given,
                "eps", note="Mean radius; an image that never broke counts with the largest eps. "
                            "eps * 1024 grows from 4 to 1600 by the same factor in 200 steps.",
                **theirs,
            )  # fmt: skip
    four = f"hu-table-4-{DATA}"

    def clean(model: nn.Module, x: Tensor, y: Tensor) -> evaluate.Share:
        return evaluate.accuracy(model, (x, y))

    for name in names:
        given = cache(partial(named, run, name))
        keys = {"network": name, "attack": "clean"}
        theirs = told("hu", (4,), name, keys)
        theirs["answers"] += told("subramanyam", (1,), name, keys)["answers"]
        yield Cell(four, keys, run, clean, given, seed=0, **theirs)
        for kind, size in hu.cases("hu"):
            keys = {"network": name, "transformation": kind, "size": size}
            theirs = told("hu", (4,), name, keys)
            accuracy = partial(hu.accuracy, "hu", kind, size)
            yield Cell(four, keys, run, accuracy, given, seed=0, **theirs)
    yield from hu.distances("hu", ("l2", "l2-standardised"), 6, run)
    yield from hu.distances("hu", ("w", "w-standardised"), 6, run.first(FEW))


def unbalanced(run: Run) -> Iterator[Cell]:
    """Table I of Subramanyam."""
    run = replace(run, dataset=DATA).first(FEW)
    for name in THEIRS:
        given = cache(partial(named, run, name))
        for variant in ("printed", "printed-clamped"):
            yield Cell(
                f"subramanyam-table-1-{DATA}", {"network": name, "variant": variant}, run,
                partial(subramanyam.attacked, variant), given, note=subramanyam.ANY_BUDGET,
                **told("subramanyam", (1,), name, {"attack": "subramanyam"}),
            )  # fmt: skip
