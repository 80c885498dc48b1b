"""Train a network against l-infinity attacks, and record what it stands."""

from dataclasses import dataclass, field
from functools import partial

import torch

from wotlab import attacks, evaluate, models, training
from wotlab.balls import LinfBall
from wotlab.experiments.frame import Run

BATCH, LR = 50, 0.05  # SGD with momentum 0.9 and weight decay 5e-4; the rate falls to zero


@dataclass(frozen=True)
class Trial:
    """One row of a table.

    `images`: the first so many training images; all by default. `step` is that of PGD-40 and
    PGD-100. `printed` holds the paper's numbers by attack. `few`: AutoAttack gets no more test
    images than that. `custom`: the parts of AutoAttack that run; all by default.
    """

    what: str
    case: str
    network: str
    ball: LinfBall
    step: float
    defense: object
    epochs: int
    images: int | None = None
    printed: dict[str, float] = field(default_factory=dict)
    source: str = ""
    few: int | None = None
    custom: tuple[str, ...] = ()

    def attacks(self) -> dict:
        """Name, attack."""
        pgd = partial(attacks.pgd, step_size=self.step, random_start=True)
        parts = {"version": "custom", "attacks": list(self.custom)} if self.custom else {}
        return {
            "fgsm": attacks.fgsm,
            "pgd-40": partial(pgd, steps=40, generator=torch.Generator().manual_seed(0)),
            "pgd-100": partial(pgd, steps=100, generator=torch.Generator().manual_seed(0)),
            "autoattack": partial(attacks.library, **parts),
        }


def trial(run: Run, row: Trial) -> None:
    """Train the network, unless all is recorded, and record its accuracies."""
    fewer = run.first(row.few)
    if not run.anew and fewer.recorded(row.what, f"{row.case}-autoattack"):
        return
    model, details = train(run, row)

    def note(run: Run, name: str, measure) -> None:
        run.number(
            row.what, f"{row.case}-{name}", "%", measure, seed=0, details=details,
            printed=row.printed.get(name), source=row.source if name in row.printed else None,
        )  # fmt: skip

    note(run, "clean", partial(stands, run, model))
    for name, attack in row.attacks().items():
        here = fewer if name == "autoattack" else run
        note(here, name, partial(stands, here, model, attack, row.ball))


def stands(run: Run, model: torch.nn.Module, attack=None, ball=None) -> evaluate.Share:
    """The share of test images that one attack leaves; without an attack, accuracy."""
    x, y = run.test_images()
    if attack is None:
        return evaluate.accuracy(model, (x, y))
    return evaluate.accuracy_curve(model, x, y, attack, ball, [ball.eps]).shares[0]


def train(run: Run, row: Trial) -> tuple[torch.nn.Module, dict]:
    """The network, and what its training took."""
    path = run.checkpoints / f"{row.what}-{row.case}.safetensors"
    images, labels = run.load("train").tensors(slice(0, row.images))
    model = models.build(row.network, seed=0).to(run.device)
    fit = training.fit(
        model, (images, labels), row.defense, epochs=row.epochs, batch_size=BATCH, lr=LR,
        schedule=lambda epoch: max(0.0, 1 - epoch / row.epochs),
        checkpoint=path.with_suffix(".checkpoint"),
    )  # fmt: skip
    models.save_weights(model, path)
    return model.eval(), {
        "network": row.network, "eps": row.ball.eps, "epochs": row.epochs,
        "autoattack_parts": list(row.custom) or "standard",
    } | spent(fit, images)  # fmt: skip


def spent(fit: training.Fit, images: torch.Tensor) -> dict:
    """What a training took, for its records."""
    return {
        "training_images": len(images),
        "training_seconds": sum(entry["seconds"] for entry in fit.history),
        "back_propagations": sum(entry["gradients"] for entry in fit.history),
        "last_loss": fit.history[-1]["loss"], "threads": torch.get_num_threads(),
    }  # fmt: skip
