"""The networks that ship: trained on two cores, rounded, measured, with a card each.

`python -m wotlab.experiments zoo [--only NAME] [--data ROOT]` makes them again, on data that lie
inside a dependency or, for the networks on MNIST, under ROOT. A training is chaotic, so another
processor gives other weights of the same kind: what ships is one outcome, and its card says what
was measured on it.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from wotlab import evaluate, models, results, training
from wotlab._base.files import replacing
from wotlab.experiments.recipes import RECIPES, Recipe
from wotlab.experiments.runner import Parser, has_room


def untrained(recipe: Recipe) -> nn.Module:
    """The network that a training starts from."""
    if recipe.start is not None:
        return models.load(recipe.start).to(recipe.precision)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(recipe.drawn)
    try:
        model = models.build(
            recipe.network, num_classes=recipe.num_classes, in_channels=recipe.in_channels,
            seed=recipe.seed,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(usual)
    return model.to(recipe.precision)


def trained(
    recipe: Recipe, root: Path | None = None, checkpoint: Path | None = None
) -> tuple[nn.Module, list[dict]]:
    """The network, and what is told of each epoch."""
    x, y = recipe.source[1]("train", root)
    model = untrained(recipe)
    done = training.fit(
        model, (x.to(recipe.precision), y), recipe.defense(), progress=False,
        checkpoint=checkpoint, **recipe.fit,
    )  # fmt: skip
    return model, done.history


def measure(name: str, model: nn.Module, every: int = 1) -> dict:
    """Clean and robust shares of every so many test images, in double precision."""
    recipe = RECIPES[name]
    x, y = (part[::every] for part in recipe.source[1]("test", None))
    x = x.double()
    shares = {"clean": vars(evaluate.accuracy(model, (x, y)))}
    broken = {key: int(judge(model, x, y).success.sum()) for key, judge in recipe.judges.items()}
    left = {key: vars(evaluate.share(len(x) - count, len(x))) for key, count in broken.items()}
    return shares | {"robust": left}


def make(name: str, folder: Path, root: Path | None) -> None:
    """Train, round to half precision, measure; write the weights and the card."""
    recipe, checkpoint = RECIPES[name], folder / f"{name}.training"
    model, history = trained(recipe, root, checkpoint)  # a killed one goes on
    model = model.half().eval()
    path = folder / f"{name}.safetensors"
    models.save_weights(model, path)
    seconds = round(sum(entry.pop("seconds") for entry in history), 1)
    told = {
        "name": name, "network": recipe.network, "num_classes": recipe.num_classes,
        "in_channels": recipe.in_channels, "training": recipe.told, "start": recipe.start,
        "data": recipe.source[0], "seed": recipe.seed,
        "command": f"python -m wotlab.experiments zoo --only {name}",
        "seconds": seconds, "history": history, **measure(name, model.double()),
        **({"again": measure(name, model, recipe.again)["robust"]} if recipe.again > 1 else {}),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **results.provenance(),
    }  # fmt: skip
    with replacing(folder / f"{name}.json") as part:
        part.write_text(json.dumps(told, indent=2) + "\n")
    checkpoint.unlink()
    shares = (evaluate.Share(**s) for s in (told["clean"], *told["robust"].values()))
    print(f"{name}: {', '.join(map(str, shares))} in {seconds:.0f} s", flush=True)


def main(arguments: list[str]) -> None:
    """The command line of `zoo`."""
    parser = Parser(prog="python -m wotlab.experiments zoo", description=__doc__)
    parser.add_argument("--only", choices=list(RECIPES), help="one network; by default all")
    parser.add_argument("--out", type=Path, default=models.SHIPPED, help="folder of the weights")
    parser.add_argument("--data", type=Path, help="folder of data sets, for networks on MNIST")
    given = parser.parse_args(arguments)
    if not has_room(given.out):
        parser.error(f"argument --out: no folder can be made at {given.out}")
    for name in [given.only] if given.only else RECIPES:
        make(name, given.out, given.data)
