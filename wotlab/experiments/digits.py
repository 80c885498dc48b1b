"""Sweeps on the 8x8 digits whose networks do not ship: chapter 5's steps, chapter 6's settings."""

from dataclasses import replace
from functools import partial

from torch import nn

from wotlab import attacks, evaluate
from wotlab.experiments import trials, zoo
from wotlab.experiments.runner import Run
from wotlab.gibbs import Chain
from wotlab.training import JointCost

SIZES = (0.25, 1.0)  # of the chain's step and noise, in units of eps
FEW = 100  # test images of the slow attacks


def chain_steps(run: Run) -> None:
    """The sign chain with short and long steps, little and much noise; constant learning rate."""
    recipes = {}
    for eta in SIZES:
        for sigma in SIZES:
            rule = Chain("sign", sigma=sigma * zoo.BALL.eps, eta=eta * zoo.BALL.eps)
            recipes[f"eta-{eta:g}-sigma-{sigma:g}"] = zoo.Recipe(
                f"sign chain, eta {eta:g} eps, sigma {sigma:g} eps",
                partial(zoo.carried(rule), zoo.growing(zoo.BALL.eps, 3)),
                {"epochs": 6, "batch_size": 50, "lr": 0.05},
            )
    strong = partial(attacks.pgd, steps=40, step_size=zoo.BALL.eps / 10)
    sweep(run, "digits-chain-steps", recipes, {"pgd-40": strong})


def got_settings(run: Run) -> None:
    """GOT-PGD-S with one change at a time, from the network of PGD-AT."""

    def cost(*names):
        return {"term": {"cost": JointCost(*names)}}

    settings = {f"beta-{beta:g}": {"beta": beta} for beta in (0.1, 1.0, 3.0, 10.0, 100.0)} | {
        "cosine-l1": cost("cosine", "l1"),
        "l2-kl": cost("l2", "kl"),
        "l2-l1": cost("l2", "l1"),
        "kl-reversed": cost("cosine", "reverse-kl"),
        "middle": {"latent": "3"},
    }
    recipes = {case: zoo.tuned(case, zoo.got("pgd", **how)) for case, how in settings.items()}
    judges = {
        "pgd-20": trials.pgd(20, zoo.BALL.eps / 8, restarts=1),
        "apgd": trials.autoattack("apgd-ce"),
    }
    sweep(run.first(FEW), "digits-got-settings", recipes, judges)


def sweep(run: Run, what: str, recipes: dict, judges: dict) -> None:
    """Train each network, unless all is recorded, and record what the attacks leave of it."""
    run = replace(run, dataset="digits")
    run = run.first(len(run.load("test")))
    names = ("clean", *judges)
    for case, recipe in recipes.items():
        if not any([run.due(what, f"{case}-{name}") for name in names]):
            continue
        model, history = zoo.trained(recipe)
        details = {
            "network": recipe.network, "training": recipe.told, "start": recipe.start,
            "eps": zoo.BALL.eps, "epochs": len(history), "dtype": "float64",
            "back_propagations": sum(entry["gradients"] for entry in history),
        }  # fmt: skip
        for name in names:
            run.number(
                what, f"{case}-{name}", "%", partial(stands, run, model.eval(), judges.get(name)),
                seed=recipe.seed, details=details,
            )  # fmt: skip


def stands(run: Run, model: nn.Module, attack=None) -> evaluate.Share:
    """The share of images that an attack leaves, in double precision; without one, accuracy."""
    x, y = run.test_images()
    x = x.double()
    if attack is None:
        return evaluate.accuracy(model, (x, y))
    broken = attack(model, x, y, zoo.BALL).success
    return evaluate.share(int((~broken).sum()), len(x))
