"""Radii of a network's images under the usual threats: `python -m wotlab.evaluate MODEL.py`.

MODEL.py holds `model`, a torch.nn.Module that takes images in [0, 1] and returns logits, or a
function `load` that returns it. Each threat is written to --out as soon as it is measured, and a
call that was killed goes on there. At the end stand a table, also as report.html with curves, and
what `wotlab.evaluate.sanity` doubts.
"""

import argparse
import runpy
import sys
from pathlib import Path

import torch
from torch import nn

from wotlab import data
from wotlab.evaluate import matrix, usual_threats
from wotlab.evaluate._report import page, text


def network(path: Path) -> nn.Module:
    """The network of a file."""
    held = runpy.run_path(str(path))
    made = held["load"]() if "load" in held else held.get("model")
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"{path} must hold `model`, a torch.nn.Module, or a function `load` that returns one; "
            f"got {type(made).__name__}"
        )
    return made.eval()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m wotlab.evaluate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = made.add_argument
    add("model", type=Path, metavar="MODEL.py")
    add("--data", required=True,
        help="a name of wotlab.data, such as mnist-5k, or a folder of images with a folder for "
             "each class, in the order of the model's classes")  # fmt: skip
    add("--size", type=int, help="pixels a side, for folders; their own size by default")
    add("--images", type=int, default=200, help="so many images, evenly spaced; 200")
    add("--threats", nargs="+", help="some of linf, l2, wasserstein, shift, rotation, blur; all")
    add("--out", type=Path, default=Path("evaluation"), help="folder of radii and report")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def main(arguments: list[str]) -> int:
    """The command line."""
    given = parser().parse_args(arguments)
    try:
        model = network(given.model).to(given.device)
        name = f"folder:{given.data}" if Path(given.data).is_dir() else given.data
        images = data.load(name, "test", size=given.size)
        count = min(given.images, len(images))
        x, y = images.tensors([k * len(images) // count for k in range(count)])
        threats = usual_threats(x)
        unknown = set(given.threats or threats) - set(threats)
        if unknown:
            raise ValueError(f"--threats knows {', '.join(threats)}; got {', '.join(unknown)}")
        chosen = {name: threats[name] for name in given.threats or threats}
        made = matrix(
            {given.model.stem: model}, chosen, (x.to(given.device), y.to(given.device)),
            folder=given.out, progress=True,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = f"{count} images of {given.data}, {given.model.name}"
    print(text(made))
    (given.out / "report.html").write_text(page(made, told))
    print(f"\n{given.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
