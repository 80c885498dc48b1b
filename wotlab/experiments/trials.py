"""Train a network against l-infinity attacks, and record what it stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from wotlab import attacks, evaluate, models, training
from wotlab.balls import LinfBall
from wotlab.experiments.runner import Run

SLOW = ("autoattack", "square", "iwda")


@dataclass(frozen=True)
class Trial:
    """One row of a table.

    `judges` are the attacks by name. `images`: the first so many training images; all by default.
    The optimizer is SGD with momentum 0.9 and weight decay 5e-4 unless another is given, and the
    rate falls to zero. `start`: the trial whose weights it goes on from. `printed` holds the
    paper's numbers by attack, `budgets` the balls of attacks that have another one than `ball`.
    `few`: the slow attacks get no more test images than that.
    """

    what: str
    case: str
    network: str
    ball: LinfBall
    defense: object
    epochs: int
    judges: dict[str, Callable]
    images: int | None = None
    batch: int = 50
    lr: float = 0.05
    optimizer: Callable | None = None
    augment: bool = False
    seed: int = 0
    start: "Trial | None" = None
    budgets: dict[str, object] = field(default_factory=dict)
    printed: dict[str, float] = field(default_factory=dict)
    source: str = ""
    few: int | None = None

    def judged_on(self, run: Run, name: str) -> Run:
        """The run with the test images that an attack gets."""
        return run.first(self.few) if name in SLOW else run


def pgd(steps: int, step, **options) -> Callable:
    """PGD from random starts that are the same for every network."""

    def attack(model, x, y, ball):
        return attacks.pgd(
            model, x, y, ball, steps=steps, step_size=step, random_start=True,
            generator=torch.Generator().manual_seed(0), **options,
        )  # fmt: skip

    return attack


def autoattack(*parts: str) -> Callable:
    """AutoAttack, or some of its attacks alone."""
    custom = {"version": "custom", "attacks": list(parts)} if parts else {}
    return partial(attacks.library, **custom)


def trial(run: Run, row: Trial) -> None:
    """Train the network, unless none of its accuracies is due, and record them."""
    names = ("clean", *row.judges)
    names = [k for k in names if row.judged_on(run, k).due(row.what, f"{row.case}-{k}")]
    if not names:
        return
    model, details = train(run, row)
    for name in names:
        here, attack = row.judged_on(run, name), row.judges.get(name)
        budget = {"budget": str(row.budgets[name])} if name in row.budgets else {}
        here.number(
            row.what, f"{row.case}-{name}", "%", partial(stands, here, model, attack, row.ball),
            seed=row.seed, details=details | budget, printed=row.printed.get(name),
            source=row.source if name in row.printed else None,
        )  # fmt: skip


def stands(run: Run, model: torch.nn.Module, attack=None, ball=None) -> evaluate.Share:
    """The share of test images that one attack leaves; without an attack, accuracy."""
    x, y = run.test_images()
    if attack is None:
        return evaluate.accuracy(model, (x, y))
    return evaluate.accuracy_curve(model, x, y, attack, ball, [ball.eps]).shares[0]


def train(run: Run, row: Trial) -> tuple[torch.nn.Module, dict]:
    """The network, and what its training took; what was trained before is only read."""
    path = run.checkpoints / f"{row.what}-{row.case}.safetensors"
    start = row.start and train(run, row.start)[0].train()
    x, y, classes = run.training_images(row.images)
    model = start or models.build(row.network, seed=row.seed, num_classes=classes)
    fit = training.fit(
        model.to(run.device), Shifted(x, y) if row.augment else (x, y), row.defense,
        epochs=row.epochs, batch_size=row.batch, lr=row.lr, optimizer=row.optimizer,
        schedule=lambda epoch: max(0.0, 1 - epoch / row.epochs), seed=row.seed,
        checkpoint=path.with_suffix(".checkpoint"), workers=4 if row.augment else 0,
        progress=True,
    )  # fmt: skip
    models.save_weights(model, path)
    details = {
        "network": row.network, "eps": row.ball.eps, "epochs": row.epochs,
        "start": row.start and row.start.case, "defense": type(row.defense).__name__,
        "defense_ball": str(getattr(row.defense, "ball", None)),
    }  # fmt: skip
    if "autoattack" in row.judges:
        parts = row.judges["autoattack"].keywords.get("attacks", "standard")
        details["autoattack_parts"] = parts
    return model.eval(), details | spent(fit, y)


class Shifted(Dataset):
    """Images that are shifted by up to four pixels, and mirrored every other time."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        self.change = transforms.Compose(
            [transforms.RandomCrop(images.shape[-1], padding=4), transforms.RandomHorizontalFlip()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), int(self.labels[index])


def spent(fit: training.Fit, images: Sequence) -> dict:
    """What a training took, for its records."""
    return {
        "training_images": len(images),
        "training_seconds": sum(entry["seconds"] for entry in fit.history),
        "back_propagations": sum(entry["gradients"] for entry in fit.history),
        "last_loss": fit.history[-1]["loss"], "threads": torch.get_num_threads(),
    }  # fmt: skip
