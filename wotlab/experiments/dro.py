"""Training against l-infinity attacks on MNIST: a chain that goes on, and attacks begun anew."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from wotlab import attacks, data, evaluate, models, training
from wotlab.balls import LinfBall
from wotlab.experiments.frame import Run
from wotlab.gibbs import Chain
from wotlab.training.defenses import madry

BALL = LinfBall(0.3)
WHAT = "linf-training"
GRADIENTS = 82  # back-propagations an image: 41 epochs of one step, two of PGD-40
PGD_40 = partial(
    attacks.pgd, steps=40, step_size=0.01, random_start=True, early_stop=False
)  # the paper's baseline
# name: the defense, and how many back-propagations an epoch takes an image
DEFENSES: dict[str, tuple[Callable[[], object], int]] = {
    "standard": (training.Standard, 1),
    "pgd-40": (lambda: training.PGDAT(BALL, attack=PGD_40), 41),
    "pgd-7": (lambda: training.PGDAT(BALL, attack=madry(7)), 8),
    "fast": (lambda: training.FastAT(BALL), 2),
    "free-8": (lambda: training.FreeAT(BALL, 8), 8),
    "chain-sign": (lambda: training.AdversarialTransport(BALL, Chain("sign")), 2),
    "chain-reflected": (
        lambda: training.AdversarialTransport(BALL, Chain("reflected", lam=1000.0, sigma=0.05)), 2,
    ),
}  # fmt: skip
EVALUATION = {
    "fgsm": attacks.fgsm,
    "pgd-40": partial(attacks.pgd, steps=40, step_size=0.01, random_start=True),
    "pgd-100": partial(attacks.pgd, steps=100, step_size=0.01, random_start=True),
    "autoattack": attacks.library,
}


def equal_gradients(run: Run) -> None:
    """Every defense on Wong's network, with the same number of back-propagations an image.

    Without a defense ten epochs are enough.
    """
    for name, (make, each) in DEFENSES.items():
        epochs = 10 if name == "standard" else round(GRADIENTS / each)
        row(run, "wong-mnist", name, make, epochs)


def row(run: Run, network: str, name: str, make: Callable[[], object], epochs: int) -> None:
    """Train one network, unless that is done, and record its accuracies."""
    case = f"{network}-{name}"
    if not run.anew and run.recorded(WHAT, f"{case}-autoattack"):
        return
    path = run.checkpoints / f"{case}.safetensors"
    model = models.build(network, seed=0).to(run.device)
    fit = training.fit(
        model,
        data.load("mnist", "train", run.data, download=False).tensors(),
        make(),
        epochs=epochs,
        batch_size=128,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3),
        schedule=lambda epoch: (1 + math.cos(math.pi * epoch / epochs)) / 2,
        checkpoint=path.with_suffix(".checkpoint"),
    )
    models.save_weights(model, path)
    spent = {
        "network": network, "defense": name, "eps": BALL.eps, "epochs": epochs,
        "training_seconds": sum(entry["seconds"] for entry in fit.history),
        "gradients_an_image": sum(entry["gradients"] for entry in fit.history) / 60_000,
        "last_loss": fit.history[-1]["loss"], "threads": torch.get_num_threads(),
    }  # fmt: skip
    x, y = run.test_images()
    run.number(
        WHAT, f"{case}-clean", "%",
        lambda: evaluate.accuracy(model, (x, y)), seed=0, details=spent,
    )  # fmt: skip
    for attack, function in EVALUATION.items():
        run.number(
            WHAT, f"{case}-{attack}", "%",
            lambda: stands(model, x, y, function),  # noqa: B023
            seed=0, details=spent,
        )  # fmt: skip


def stands(model: nn.Module, x: torch.Tensor, y: torch.Tensor, attack) -> evaluate.Share:
    """The share of images that one attack leaves at the training's eps."""
    draw = torch.Generator().manual_seed(0)
    options = {} if attack in (attacks.fgsm, attacks.library) else {"generator": draw}
    return evaluate.accuracy_curve(
        model, x, y, partial(attack, **options), BALL, [BALL.eps]
    ).shares[0]
