"""Subramanyam (2022), tables I to IV: his attack, his defense, and the usual attacks beside them.

Each step of the attack is one of FGSM, 0.02 along the gradient's sign, and then ten iterations of
his projection. His plan has the full cost matrix. At his weights it moves no mass, so that a plan
which only joins each pixel to itself gives the same image to 1e-6 (a test compares them), in a
thousandth of the time.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wotlab import GroundCost, attacks, certify, evaluate, models, training
from wotlab.balls import L2Ball, LinfBall, WassersteinBall
from wotlab.experiments.runner import Cell, Missing, Run, answers, printed
from wotlab.experiments.trials import fitted, judged
from wotlab.projections import Projection, unbalanced_sinkhorn
from wotlab.results import Keys

EPS, RULE, STEP, STEPS = 0.2, "sign", 0.02, 10
ITERATIONS, WINDOW = 10, 1
BALL = WassersteinBall(EPS, GroundCost(WINDOW))
UPDATES = ("printed", "corrected", "l2")
CLAMPED = "-clamped"  # with each step and each iterate in [0, 1], of which the paper says nothing
VARIANTS = tuple(update + end for end in ("", CLAMPED) for update in UPDATES)

ANY_BUDGET = "Of the attack's own images, whether or not they keep any budget."
Weights = dict[str, float]  # of `unbalanced_sinkhorn`: gamma, reg, tau
SWEEP = {  # one at a time; the middle ones are the printed
    "tau": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "eta": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    "gamma": (5e-3, 5e-2, 5e-1, 5.0, 50.0),
}
SWEPT, WIDE = ("printed-clamped", "corrected-clamped"), 5  # beside tau >> eta mass may move

LINF = "linf-training-pgd-40"  # what `linf-training` trained with PGD-40
INNER, NOISE = 20, 0.01  # steps of the attack in training
# His learning rate and epochs are for a GPU; on a CPU the first images, and fewer epochs.
WHOLE = {"mnist": (0.01, 40), "fashion-mnist": (3e-4, 60)}
SHORT_IMAGES, SHORT_EPOCHS, SHORT_LR, BATCH = 10_000, 2, 0.01, 20

ANY = L2Ball(28.0)  # the diameter of [0, 1]^784: CW and DeepFool have no budget there
FAST = {"alpha": 0.2}
Settings = dict[str, tuple[L2Ball | LinfBall, dict[str, Any]]]
SETTINGS: Settings = {  # his table VII: the ball, and options of the library's attack
    "pgd-l2": (L2Ball(0.2), FAST | {"steps": 400}),
    "cw": (ANY, {"c": 5.0}),
    "tpgd": (LinfBall(0.2), FAST | {"steps": 10}),
    "ffgsm": (LinfBall(0.2), FAST),
    "mi-fgsm": (LinfBall(0.2), FAST | {"steps": 10}),
    "deepfool": (ANY, {"steps": 2}),
    "autoattack": (L2Ball(0.2), {}),
    "m-di2-fgsm": (LinfBall(0.2), FAST | {"steps": 2}),
}
AT_03: Settings = {  # table III says eps <= 0.3
    name: (LinfBall(0.3) if name != "cw" else ANY, SETTINGS[name][1])
    for name in ("cw", "tpgd", "mi-fgsm", "autoattack", "m-di2-fgsm")
}
FEW = 200  # images for the sweep, and for AutoAttack, which takes as long as all others
ROWS = {  # by table: data, networks, attacks
    2: ("mnist", ("standard",), SETTINGS),
    3: ("mnist", ("standard", "linf", "wong2019", "hu2020", "subramanyam"), AT_03),
    4: ("fashion-mnist", ("standard", "subramanyam"), SETTINGS),
}


def table_1(run: Run) -> Iterator[Cell]:
    """Accuracy under ten steps of it, as published and by what is inside the ball of eps 0.2.

    A variant is an update of z; "-clamped" says that every step and iterate is kept in [0, 1].
    """
    for name in run.networks():
        given = cache(partial(run.named, name))
        theirs = printed("subramanyam", 1, {"network": name, "attack": "subramanyam"})
        for variant in VARIANTS:
            yield Cell(
                "subramanyam-table-1", {"network": name, "variant": variant}, run,
                partial(attacked, variant), given,
                details={"rule": RULE, "step": STEP, "steps": STEPS, "window": WINDOW},
                note=f"{ANY_BUDGET} At the paper's weights no mass moves: its full cost matrix "
                     "gives the same images as this window of one pixel.",
                **(theirs if variant.startswith("printed") else {}),
            )  # fmt: skip


def targeted(run: Run) -> Iterator[Cell]:
    """His attack towards the next class: the share of images that are then read as it."""
    for name in run.networks():
        for variant in ("printed", "printed-clamped"):
            yield Cell(
                "subramanyam-targeted", {"network": name, "variant": variant}, run,
                partial(attacked, variant, towards=1), cache(partial(run.named, name)),
                details={"target": "the next class"}, note=ANY_BUDGET,
            )  # fmt: skip


def settings(run: Run) -> Iterator[Cell]:
    """Its weights one at a time, the others as printed, on the robust networks."""
    run, ball = run.first(FEW), replace(BALL, ground_cost=GroundCost(WIDE))
    robust = {name: cache(partial(run.named, name)) for name in ("wong2019", "hu2020")}
    for (name, given), (which, values), variant in product(robust.items(), SWEEP.items(), SWEPT):
        for value in values:
            weights = {"reg" if which == "eta" else which: value}
            keys: Keys = {"network": name, "variant": variant, which: value}
            yield Cell(
                "subramanyam-settings", keys, run,
                partial(attacked, variant, ball=ball, weights=weights), given,
                details={"window": WIDE, "iterations": ITERATIONS}, note=ANY_BUDGET,
            )  # fmt: skip


def project(
    variant: str, x: Tensor, w: Tensor, ground_cost: GroundCost, weights: Weights | None = None
) -> Projection:
    """His projection with the full cost matrix, by a plan with the window of `ground_cost`."""
    update, clamped = variant.removesuffix(CLAMPED), variant.endswith(CLAMPED)
    w = w.clamp(0, 1) if clamped else w
    done = unbalanced_sinkhorn(
        x, w, ground_cost, variant=update, max_iter=ITERATIONS, **weights or {}
    )
    return replace(done, image=done.image.clamp(0, 1)) if clamped else done


def attacked(
    variant: str, model: nn.Module, x: Tensor, y: Tensor, *, towards: int = 0,
    ball: WassersteinBall = BALL, weights: Weights | None = None,
) -> tuple[evaluate.Share, dict]:  # fmt: skip
    """Accuracy on what the attack makes; the success of one `towards` a class so much further."""
    done = attacks.pgd(
        model, x, (y + towards) % 10, ball, targeted=bool(towards), steps=STEPS, step_size=STEP,
        rule=RULE, projection=partial(project, variant, weights=weights), repaired=False,
        batch_size=100,
    )  # fmt: skip
    z = done.x_adv.clamp(0, 1)
    with torch.no_grad():
        read = model(z).argmax(1)
    hit, right = read == (y + towards) % 10, read == y
    seen = certify(x, z, BALL)
    kept = int((hit & seen.inside).sum() if towards else (right | ~seen.inside).sum())
    what = "success" if towards else "accuracy"
    return evaluate.share(int(hit.sum()), len(x)), {
        f"{what}_by_images_inside_the_ball": 100 * kept / len(x),
        "accuracy": 100 * float(right.double().mean()),
        "w_mean": float(seen.cost.mean()),
        "mass_change_mean": float((z.sum((1, 2, 3)) / x.sum((1, 2, 3)) - 1).mean()),
        "largest_change_of_a_pixel": float((z - x).abs().max()),
        "attack_seconds": done.seconds,
    }


def weights(run: Run) -> Path:
    """Where those of his network lie; what a GPU trains is another network."""
    suffix = "-whole" if run.whole else ""
    return run.checkpoints / f"subramanyam-{run.dataset}{suffix}.safetensors"


def train(run: Run) -> tuple[nn.Module, dict]:
    """His training of Wong's network, or what is left of it on a CPU."""
    path, model = weights(run), models.build("wong-mnist", seed=0).to(run.device)
    lr, epochs = WHOLE[run.dataset] if run.whole else (SHORT_LR, SHORT_EPOCHS)
    attack = partial(
        attacks.pgd, steps=INNER, step_size=STEP, rule=RULE,
        projection=partial(project, "corrected"), repaired=False, early_stop=False,
    )  # fmt: skip
    *_, features, _ = model.children()
    defense = training.WassersteinAT(BALL, attack=attack, noise=NOISE, features=features)
    images = run.load("train").tensors(slice(0, None if run.whole else SHORT_IMAGES))
    model, took = fitted(model, images, defense, path, epochs=epochs, batch_size=BATCH, lr=lr)
    return model, {
        "attack_rule": RULE, "attack_step": STEP, "attack_steps": INNER, "attack_window": WINDOW,
        "epochs": epochs, **took,
    }  # fmt: skip


def defense(run: Run) -> Iterator[Cell]:
    """His training, and its clean accuracy."""
    keys: Keys = {"data": run.dataset, "attack": "clean", "whole": run.whole}
    clean = partial(judged, run, None, None)
    yield Cell("subramanyam-defense", keys, run, clean, partial(train, run), seed=0)


def plain(run: Run) -> nn.Module:
    """Wong's network without a defense, for data sets that no network is released for."""
    path = run.checkpoints / f"standard_{run.dataset}.safetensors"
    if not path.exists():
        model = models.build("wong-mnist", seed=0).to(run.device)
        fitted(model, run.load("train").tensors(), training.Standard(), path, epochs=10, lr=0.05,
               schedule=lambda epoch: max(0.0, 1 - epoch / 10))  # fmt: skip
    return run.network(path.name)


def network(run: Run, name: str) -> tuple[nn.Module, dict]:
    """One of the five of table III; nothing else is told of it."""
    if name == "subramanyam":
        return (run.network(weights(run).name) if weights(run).exists() else train(run)[0]), {}
    if run.dataset != "mnist":
        return plain(run), {}
    file = run.released.get(name, f"{LINF}.safetensors")
    if not (run.checkpoints / file).exists():
        raise Missing(name)
    return run.network(file), {}


def table(number: int, run: Run) -> Iterator[Cell]:
    """Networks under every attack: without a defense, at eps = 0.3, and on Fashion-MNIST."""
    dataset, names, settings = ROWS[number]
    run = replace(run, dataset=dataset)
    for name in names:
        if name == "subramanyam" and (run.anew or not weights(run).exists()):
            yield from defense(run)
        given = cache(partial(network, run, name))
        for attack in ("clean", *settings):
            here = run.first(FEW if attack == "autoattack" else None)
            ball, options = settings.get(attack, (None, {}))
            judge = partial(attacks.library, name=attack, **options) if ball else None
            keys: Keys = {"network": name, "attack": attack}
            theirs = printed("subramanyam", number, keys, dataset)
            if attack == "clean":  # Hu prints it of the same networks
                theirs["answers"] = theirs.get("answers", []) + answers("hu", 4, keys, dataset)
            yield Cell(
                f"subramanyam-table-{number}", keys, here, partial(judged, here, judge, ball),
                given, seed=0, details={"ball": repr(ball), "options": options} if ball else {},
                **theirs,
            )  # fmt: skip
