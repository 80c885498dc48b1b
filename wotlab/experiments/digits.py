"""A sweep on the 8x8 digits whose networks do not ship: chapter 7's settings."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import nn

from wotlab import evaluate, training
from wotlab.experiments import recipes, trials, zoo
from wotlab.experiments.runner import Cell, Run
from wotlab.results import Keys
from wotlab.training import JointCost

FEW = 100  # test images of the slow attacks
SETTINGS: dict[str, dict[str, Any]] = {  # of GOT-PGD-S, one change at a time
    **{f"beta-{beta:g}": {"beta": beta} for beta in (0.1, 1.0, 3.0, 10.0, 100.0)},
    "cosine-l1": {"term": {"cost": JointCost("cosine", "l1")}},
    "l2-kl": {"term": {"cost": JointCost("l2", "kl")}},
    "l2-l1": {"term": {"cost": JointCost("l2", "l1")}},
    "kl-reversed": {"term": {"cost": JointCost("cosine", "reverse-kl")}},
    "middle": {"latent": "3"},
}


def got_settings(run: Run) -> Iterator[Cell]:
    """GOT-PGD-S with one change at a time, from the network of PGD-AT."""
    judges = {
        "pgd-20": trials.pgd(20, recipes.BALL.eps / 8, restarts=1),
        "apgd": trials.autoattack("apgd-ce"),
    }
    for name, how in SETTINGS.items():
        recipe = recipes.Recipe(
            f"{name}, l-infinity 0.15, 3 epochs, Adam from 0.001", partial(got, **how),
            recipes.falling(3) | {"optimizer": trials.adam}, start="digits-pgd-at-6",
        )  # fmt: skip
        yield from row(run.first(FEW), "digits-got-settings", {"setting": name}, recipe, judges)


def got(term: dict | None = None, **options: Any) -> training.GOT:
    """GOT on PGD-AT with five steps; `term` are options of `JointTransport`."""
    return training.GOT(recipes.pgd_at(5), training.JointTransport(**(term or {})), **options)


def row(
    run: Run, what: str, keys: Keys, recipe: recipes.Recipe, judges: dict[str, Callable]
) -> Iterator[Cell]:
    """A network and what the attacks leave of it, in double precision."""
    run = replace(run, dataset="digits")
    run = run.first(len(run.load("test")))
    given = cache(partial(trained, recipe))
    for name in ("clean", *judges):
        yield Cell(what, keys | {"attack": name}, run, partial(stands, run, judges.get(name)),
                   given, seed=recipe.seed)  # fmt: skip


def trained(recipe: recipes.Recipe) -> tuple[nn.Module, dict]:
    model, history = zoo.trained(recipe)
    return model.eval(), {
        "network": recipe.network, "training": recipe.told, "start": recipe.start,
        "eps": recipes.BALL.eps, "epochs": len(history), "dtype": "float64",
        "back_propagations": sum(entry["gradients"] for entry in history),
    }  # fmt: skip


def stands(
    run: Run, attack: Callable | None, model: nn.Module, details: dict
) -> tuple[evaluate.Share, dict]:
    """The share of images that an attack leaves; without one, accuracy."""
    x, y = run.test_images()
    x = x.double()
    if attack is None:
        return evaluate.accuracy(model, (x, y)), details
    broken = attack(model, x, y, recipes.BALL).success
    return evaluate.share(int((~broken).sum()), len(x)), details
