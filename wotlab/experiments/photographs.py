"""Tan et al.'s Table 1 on real photographs: a pretrained network, at three sizes of image."""

import base64
import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.io import encode_jpeg

from wotlab import attacks, evaluate, models
from wotlab.attacks import AttackResult
from wotlab.balls import InternalWassersteinBall, LinfBall, WassersteinBall
from wotlab.experiments.internal import with_noise
from wotlab.experiments.iwd import another
from wotlab.experiments.runner import Cell, Refused, Run

NETWORK, PIXELS = "efficientnet-lite0", 8 / 255
SIZES = {64: 38, 128: 20, 224: 10}  # pixels, and how many photographs are attacked
FEW = {"iwda": {64: 12, 128: 5, 224: 2}}  # by the slow one
NEAR = 27 * PIXELS
ANY = InternalWassersteinBall(27.0, tile=16)
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "fgsm": partial(attacks.fgsm, ball=LinfBall(PIXELS)),
    "pgd-10": partial(attacks.pgd, ball=LinfBall(PIXELS), steps=10),
    "eot": partial(with_noise, attacks.eot, ball=LinfBall(PIXELS), steps=10, samples=4),
    "stadv": partial(attacks.stadv, ball=ANY, steps=30),
    "adef": partial(attacks.adef, ball=ANY, steps=30),
    "fwadv": partial(attacks.frank_wolfe, ball=WassersteinBall(PIXELS), steps=20),
    "iwda": partial(with_noise, attacks.iwda, ball=ANY, steps=50),
    "direct": partial(attacks.pgd, ball=InternalWassersteinBall(NEAR, tile=4), steps=10),
    "direct-0.1": partial(attacks.pgd, ball=InternalWassersteinBall(0.1, tile=4), steps=10),
}
SHOWN = {"clean": "", "pgd-10": "PGD-10", "adef": "ADef", "iwda": "IWDA", "direct-0.1": "direct"}


@cache
def read(folder: Path) -> tuple[list[Image.Image], Tensor, list[str]]:
    """All photographs with their labels and whom to credit."""
    listed = folder / "CREDITS.tsv"
    if not listed.is_file():
        raise Refused(f"there is no list of photographs at {listed}")
    with listed.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    whole = [Image.open(folder / "val" / row["file"]).convert("RGB") for row in rows]
    y = torch.tensor([int(row["label (from 0)"]) for row in rows])
    return whole, y, [row["author"] for row in rows]


def cut(whole: list[Image.Image], size: int) -> Tensor:
    """The centres of photographs, of `size` pixels."""
    look = transforms.Compose([
        transforms.Resize(round(size * 256 / 224), transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size), transforms.ToTensor(),
    ])  # fmt: skip
    return torch.stack([look(each) for each in whole])


@cache
def network() -> nn.Module:
    return models.build(NETWORK, weights="default").eval().requires_grad_(False)


@cache
def given(folder: Path, size: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, list[str]]:
    """The network, all photographs, and the indices of those to attack: the ten classes first."""
    whole, y, credits = read(folder)
    model, x = network(), cut(whole, size)
    right = evaluate.are_right(model, x, y, batch_size=20)
    ten = torch.isin(y, torch.tensor(models.IMAGENET10))
    order = torch.cat([(right & ten).nonzero()[:, 0], (right & ~ten).nonzero()[:, 0]])
    return model, x, y, order, credits


def attacked(
    attack: Callable[..., AttackResult], model: nn.Module, x: Tensor, y: Tensor, targeted: bool
) -> AttackResult:
    if targeted:
        y = another(y, 1000)
    return attack(model, x, y, targeted=targeted)


def rate(
    count: int, attack: Callable | None, targeted: bool,
    model: nn.Module, x: Tensor, y: Tensor, order: Tensor, credits: list[str],
) -> tuple[evaluate.Share, dict]:  # fmt: skip
    """The share of the photographs read rightly that an attack breaks; None: that are read so."""
    ten = torch.isin(y, torch.tensor(models.IMAGENET10))
    if attack is None:
        details = {"ten_classes": int(ten.sum()), "ten_classes_right": int(ten[order].sum())}
        return evaluate.share(len(order), len(x)), details
    some = order[:count]
    done = attacked(attack, model, x[some], y[some], targeted)
    z = done.x_adv.clamp(0, 1)
    change, hit, far = z - x[some], done.success, ANY.distance(x[some], z)
    sizes = {"l2": change.flatten(1).norm(dim=1), "linf": change.abs().amax((1, 2, 3)), "iwd": far}
    return evaluate.share(int(hit.sum()), len(hit)), {
        k: [round(a, 4) if b else None for a, b in zip(v.tolist(), hit, strict=True)]
        for k, v in sizes.items()
    } | {"ten_classes": int(ten[some].sum()), "indices": some.tolist(),
         "seconds_an_image": round(done.seconds / len(some), 2)}  # fmt: skip


def table(run: Run) -> Iterator[Cell]:
    """What eight attacks break of photographs at 64, 128 and 224 pixels, untargeted and targeted.

    FGSM, PGD and EOT have l-infinity 8/255, FWAdv as many pixels of moved mass, the direct attack
    0.85 in IWD, and once more 0.1; ADef, stAdv and IWDA go as far as they go.
    """
    run, folder = replace(run.first(200), dataset="imagenet"), run.data / "imagenet"
    for size in SIZES:
        these = partial(given, folder, size)
        yield Cell("iwd-photographs", {"size": size, "attack": "clean"}, run,
                   partial(rate, 0, None, False), these)  # fmt: skip
        for name, attack in ATTACKS.items():
            for kind in ("untargeted", "targeted"):
                count = FEW.get(name, SIZES)[size]
                yield Cell(
                    "iwd-photographs", {"size": size, "attack": name, "kind": kind}, run,
                    partial(rate, count, attack, kind == "targeted"), these, seed=0,
                    details={"attacked": count},
                )  # fmt: skip


def sheet(
    model: nn.Module, x: Tensor, y: Tensor, order: Tensor, credits: list[str]
) -> tuple[float, dict]:
    """Five photographs of the ten classes, clean and attacked, as one small picture."""
    ten = order[torch.isin(y[order], torch.tensor(models.IMAGENET10))]
    first = [int(ten[y[ten] == label][0]) for label in y[ten].unique()[:5]]
    rows, names, far = [], [], []
    for name in SHOWN:
        z = x[first]
        if name != "clean":
            z = attacked(ATTACKS[name], model, z, y[first], False).x_adv
        rows.append((255 * z).round().byte())
        with torch.no_grad():
            names.append(model(rows[-1] / 255).argmax(1).tolist())
        far.append([round(d, 3) for d in ANY.distance(x[first], rows[-1] / 255).tolist()])
    whole = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return float(torch.tensor(far[-1]).median()), {
        "rows": list(SHOWN.values()), "labels": y[first].tolist(), "read": names, "iwd": far,
        "credits": [credits[k] for k in first], "licence": "CC-BY 2.0", "size": x.shape[-1],
        "jpeg": base64.b64encode(bytes(encode_jpeg(whole, 90).tolist())).decode(),
    }  # fmt: skip


def pictures(run: Run) -> Iterator[Cell]:
    """Photographs of five of the ten classes, attacked; IWD of the direct attack, median."""
    run, folder = replace(run.first(200), dataset="imagenet"), run.data / "imagenet"
    these = partial(given, folder, 128)
    keys: dict[str, Any] = {"network": NETWORK}
    yield Cell("iwd-pictures", keys, run, sheet, these, "IWD, median", seed=0)
