"""Train a network against l-infinity attacks, and record what it stands."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import accumulate
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms

from wotlab import attacks, evaluate, models, results, training
from wotlab._base.dataset import as_dataset
from wotlab.balls import Ball
from wotlab.experiments.runner import Cell, Run, printed
from wotlab.results import Keys

SLOW = ("autoattack", "square", "iwda")


@dataclass(frozen=True)
class Trial:
    """One row of a table.

    `keys` are those of its records, but the attack. `judges` are the attacks by name. `images`:
    the first so many training images; all by default. The optimizer is SGD with momentum 0.9 and
    weight decay 5e-4 unless another is given, and the rate falls to zero. `start`: the trial whose
    weights it goes on from. `printed`: the paper and the table that print its numbers. `budgets`:
    the balls of attacks that have another one than `ball`. `few`: the slow attacks get no more
    test images than that. `watch`: an attack that all test images meet after each epoch, told in
    the details as a curve.
    """

    what: str
    keys: Keys
    network: str
    ball: Ball
    defense: Any
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
    printed: tuple[str, int] | None = None
    few: int | None = None
    watch: Callable | None = None


def pgd(steps: int, step: float | Callable, **options: Any) -> Callable:
    """PGD from random starts that are the same for every network."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> attacks.AttackResult:
        return attacks.pgd(
            model, x, y, ball, steps=steps, step_size=step, random_start=True,
            generator=torch.Generator().manual_seed(0), **options,
        )  # fmt: skip

    return attack


def autoattack(*parts: str) -> Callable:
    """AutoAttack, or some of its attacks alone."""
    custom: dict[str, Any] = {"version": "custom", "attacks": list(parts)} if parts else {}
    return partial(attacks.library, **custom)


def trial(run: Run, row: Trial) -> Iterator[Cell]:
    """The network's accuracies: clean, and under each attack. It is trained where one is due."""
    trained = cache(partial(train, run, row))
    for name in ("clean", *row.judges):
        here, keys = run.first(row.few) if name in SLOW else run, row.keys | {"attack": name}
        yield Cell(
            row.what, keys, here, partial(judged, here, row.judges.get(name), row.ball), trained,
            seed=row.seed,
            details={"budget": str(row.budgets[name])} if name in row.budgets else {},
            **(printed(*row.printed, keys, run.dataset) if row.printed else {}),
        )  # fmt: skip


def judged(
    run: Run, attack: Callable | None, ball: Any, model: nn.Module, details: dict
) -> tuple[evaluate.Share, dict]:
    """Accuracy, or the share of test images that one attack leaves; what was known before."""
    x, y = run.test_images()
    if attack is None:
        return evaluate.accuracy(model, (x, y)), details
    return evaluate.accuracy_curve(model, x, y, attack, ball, [ball.eps]).shares[0], details


def train(run: Run, row: Trial) -> tuple[nn.Module, dict]:
    """The network, and what its training took; what was trained before is only read."""
    path = run.checkpoints / f"{row.what}-{results.name(row.keys)}.safetensors"
    start = train(run, row.start)[0].train() if row.start else None
    x, y, classes = run.training_images(row.images)
    model = start or models.build(row.network, seed=row.seed, num_classes=classes)
    model, took = fitted(
        model.to(run.device), Shifted(x, y) if row.augment else (x, y), row.defense, path,
        epochs=row.epochs, batch_size=row.batch, lr=row.lr, optimizer=row.optimizer,
        schedule=lambda epoch: max(0.0, 1 - epoch / row.epochs), seed=row.seed,
        workers=4 if row.augment else 0, keep_best=False,
        validate=watching(row.watch, *run.test_images(), row.ball) if row.watch else None,
    )  # fmt: skip
    details = {
        "network": row.network, "eps": row.ball.eps, "epochs": row.epochs,
        "start": row.start and results.name(row.start.keys),
        "defense": type(row.defense).__name__,
        "defense_ball": str(getattr(row.defense, "ball", None)),
    }  # fmt: skip
    if isinstance(judge := row.judges.get("autoattack"), partial):
        details["autoattack_parts"] = judge.keywords.get("attacks", "standard")
    return model, details | took


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """With the learning rate of 0.001 that Adam's authors suggest."""
    return torch.optim.Adam(model.parameters(), 1e-3)


def fitted(
    model: nn.Module, data: Dataset | tuple[Tensor, Tensor], defense: Any, path: Path,
    **options: Any,
) -> tuple[nn.Module, dict]:  # fmt: skip
    """Train, or go on, and keep the weights: the network, and what it took, for its records.

    Several processes may want one network, such as the start of their rows: one trains it, the
    others wait, and then find its checkpoint complete.
    """
    checkpoint = path.with_suffix(".checkpoint")
    alone = parent_process() is None  # several bars would write over one another
    with FileLock(path.with_suffix(".lock")):
        fit = training.fit(model, data, defense, checkpoint=checkpoint, progress=alone, **options)
        models.save_weights(model, path)
    return model.eval(), {
        "training_images": len(as_dataset(data)),
        "training_seconds": sum(entry["seconds"] for entry in fit.history),
        "back_propagations": sum(entry["gradients"] for entry in fit.history),
        "last_loss": fit.history[-1]["loss"], "threads": torch.get_num_threads(),
        **({"curve": curve(fit)} if "validation" in fit.history[0] else {}),
    }  # fmt: skip


def watching(attack: Callable, x: Tensor, y: Tensor, ball: Ball) -> Callable[[nn.Module], float]:
    """A `validate` of `fit`: the share that an attack leaves of test images."""
    return lambda model: 1 - attack(model, x, y, ball).success.double().mean().item()


def curve(fit: training.Fit) -> list[tuple[float, float]]:
    """Back-propagations after each epoch, in all, and what was watched then."""
    spent = accumulate(entry["gradients"] for entry in fit.history)
    seen = (entry["validation"] for entry in fit.history)
    return list(zip(spent, seen, strict=True))


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
