"""How many images survive each attack on the plan, as the budget grows: the book's headline.

And the training of our network in that table: Wong's, on MNIST, on two cores within an hour.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torchvision.io import encode_png

from wotlab import GroundCost, attacks, certify, evaluate, models, training
from wotlab.balls import WassersteinBall
from wotlab.experiments.runner import NETWORKS, Cell, Run, printed
from wotlab.experiments.trials import adam, fitted, judged
from wotlab.results import Keys

PIXELS = {"mnist": 784, "fashion-mnist": 784, "cifar10": 1024}
BUDGETS = {  # eps * pixels, as the papers print it
    "mnist": (5, 10, 20, 50, 100, 200, 400, 800, 1600),
    "fashion-mnist": (1, 2, 5, 10, 20, 50, 100),
    "cifar10": (0.5, 1, 2, 5, 10, 20),
}
ATTACKS: dict[str, Callable[..., attacks.AttackResult]] = {
    "transport": attacks.transport,
    "mirror": partial(attacks.mirror_ascent, steps=150),
    "frank-wolfe": partial(attacks.frank_wolfe, steps=300),
    "frank-wolfe-published": partial(attacks.frank_wolfe, steps=300, published=True),
}
WINDOWS = {"transport": 9}  # its own; the others move mass as published, in
NEAR = 5  # pixels a side
WHAT = {data: f"{data}-robust-accuracy" for data in BUDGETS}
PRINTED = {"wong2019": 1, "hu2020": 5}  # Hu's tables of their attack on these networks

EPOCHS, EPS, GROW = 12, 0.16, 3  # of our training


def robust_accuracy(data: str, run: Run) -> Iterator[Cell]:
    """Robust accuracy of every network under every attack.

    Balls are nested: an image that breaks at one eps is broken at every larger one, so each budget
    is tried on what the last one left. Every success is certified by the exact distance on the
    whole grid. Moves go up to two pixels, as published; those of `transport` up to four.
    """
    run = replace(run, dataset=data)
    for attack in ATTACKS:
        for name in run.networks():
            yield from fall(run, cache(partial(run.named, name)), name, attack)


def of_table(name: str, attack: str, budget: float) -> Keys:
    """The keys of a row's cell."""
    window = WINDOWS.get(attack, NEAR)
    return {"network": name, "attack": attack, "budget": budget, "window": window}


def fall(run: Run, given: Callable[[], tuple], name: str, attack: str) -> Iterator[Cell]:
    """One attack on one network as the budget grows."""
    left: list[int] | None = None  # the places of images that the last budget left; None: all
    what = WHAT[run.dataset]
    for budget in BUDGETS[run.dataset]:
        keys = of_table(name, attack, budget)
        ball = WassersteinBall(budget / PIXELS[run.dataset], GroundCost(NEAR))
        where: Keys = {"network": name, "attack": "hu", "budget": budget}
        yield Cell(
            what, keys, run, partial(measure, left, ball, ATTACKS[attack]), given,
            details={"eps": ball.eps, "network": name, "attack": attack, "window": keys["window"]},
            **(printed("hu", PRINTED[name], where)
               if attack == "transport" and name in PRINTED else {}),
        )  # fmt: skip
        found = run.recorded(what, keys)
        if found is not None:  # else it is not asked for: then the next budget has more to break
            left = found.details["left"]


def measure(
    places: list[int] | None, ball: WassersteinBall, attack: Callable,
    model: nn.Module, x: Tensor, y: Tensor,
) -> tuple[evaluate.Share, dict]:  # fmt: skip
    """Attack what is left; the share of all images that still stand, with its evidence."""
    left = torch.tensor(range(len(x)) if places is None else places, device=x.device).long()
    if not len(left):
        return evaluate.share(0, len(x)), {"left": [], "broken": 0, "attack_seconds": 0.0}
    done = attack(model, x[left], y[left], ball)
    broken = done.success.clone()
    evidence = {"left": left.tolist(), "broken": 0, "attack_seconds": done.seconds}
    if bool(broken.any()):
        seen = certify(x[left[broken]], done.x_adv[broken], ball)
        broken[done.success] = seen.inside
        evidence |= {
            "left": left[~broken].tolist(),
            "broken": int(broken.sum()),
            "refused_by_exact_lp": int((~seen.inside).sum()),
            "largest_exact_w_over_eps": float(seen.cost.max()) / ball.eps,
            "largest_mass_error": float(seen.mass_error.max()),
            "largest_box_error": float(seen.box_error.max()),
        }
    return evaluate.share(len(evidence["left"]), len(x)), evidence


def budget(epoch: float) -> float:
    """eps: grows over the first epochs, step by step, then stays."""
    return EPS * min(1.0, (int(epoch) + 1) / (GROW + 1))


def rate(epoch: float) -> float:
    """Learning rate of an epoch: half a cosine, from 1 down to 0.02."""
    return 0.02 + 0.98 * (1 + math.cos(math.pi * int(epoch) / EPOCHS)) / 2


def defense() -> training.WassersteinAT:
    attack = partial(attacks.mirror_ascent, steps=3, step_size=16.0, early_stop=False)
    return training.WassersteinAT(WassersteinBall(EPS), budget, attack)


def train(run: Run, seed: int = 0) -> tuple[nn.Module, dict]:
    """The network, and what its training took, with the weights' checksum."""
    path = run.checkpoints / NETWORKS["mnist"]["ours"]
    model = models.build("wong-mnist", seed=seed).to(run.device)
    model, took = fitted(
        model, run.load("train").tensors(), defense(), path,
        epochs=EPOCHS, batch_size=128, schedule=rate, seed=seed,
        optimizer=adam,
    )  # fmt: skip
    seal = hashlib.sha256(path.read_bytes()).hexdigest()
    return model, {"eps": EPS, "epochs": EPOCHS, "sha256": seal, **took}


def wasserstein_at(run: Run) -> Iterator[Cell]:
    """Train, and record clean accuracy."""
    clean = partial(judged, run, None, None)
    yield Cell("wasserstein-at", {"attack": "clean"}, run, clean, partial(train, run), seed=0)


RADII = "mnist-radii"
LARGEST = WassersteinBall(4.0)


def above(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict]:
    """How far the nearest misread image is, as far as `radius` finds one: the exact distance."""
    found = attacks.radius(model, x, y, LARGEST)
    seen = certify(x, found.x_adv, LARGEST)
    eps = seen.cost.where(found.eps.isfinite() & seen.inside, torch.inf)
    return median(eps), {"radii": listed(eps), "attack_seconds": found.seconds}


def below(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict]:
    """How far no image is misread, as far as it is proven."""
    eps = evaluate.certified_radius(model, x, y, LARGEST)
    return median(eps), {"radii": listed(eps)}


SIDES = {"attack": (above, None), "proof": (below, 50)}  # a proof takes ten seconds an image


def median(eps: Tensor, data: str = "mnist") -> float:
    """Of eps * pixels."""
    return PIXELS[data] * float(eps.double().median())


def listed(eps: Tensor) -> list[float | None]:
    """Radii for a file of JSON, which knows no infinity."""
    return [float(f"{r:.6g}") if math.isfinite(r) else None for r in eps.tolist()]


def radii(run: Run) -> Iterator[Cell]:
    """Distance of each image to the nearest one that is misread: from above and from below.

    From above by `radius`, in one call; from below by `certified_radius`.
    """
    for name in run.networks():
        for side, (find, count) in SIDES.items():
            some = run.first(count)
            yield Cell(
                RADII, {"network": name, "side": side}, some, find,
                partial(some.named, name), "eps * 784, median",
                details={"network": name},
            )  # fmt: skip


EVERYBODY = "mnist-union"
FURTHER = {  # tried by the union of all attacks, besides those of the table and `radius`
    "window-5": partial(attacks.transport, window=5),
    "window-13": partial(attacks.transport, window=13),
    "nine-restarts": partial(attacks.transport, restarts=9),
}


def union(run: Run) -> Iterator[Cell]:
    """Robust accuracy under all attacks together: those on record, and `FURTHER` ones.

    It says how much a longer search of the same kind could still gain on a single attack.
    """
    for name in run.networks():
        given = cache(partial(run.named, name))
        radii = run.recorded(RADII, {"network": name, "side": "attack"})
        far = radii.details["radii"] if radii is not None else run.images * [None]
        left = set(range(run.images))
        for budget in BUDGETS["mnist"]:
            ball = WassersteinBall(budget / PIXELS["mnist"], GroundCost(NEAR))
            keys: Keys = {"network": name, "budget": budget}
            others = {
                attack: run.recorded(WHAT["mnist"], of_table(name, attack, budget))
                for attack in ATTACKS
            }
            found = {attack: record.details["left"] for attack, record in others.items() if record}
            left &= {i for i, eps in enumerate(far) if eps is None or eps > ball.eps}
            left = left.intersection(*found.values())
            yield Cell(
                EVERYBODY, keys, run, partial(together, sorted(left), ball), given,
                details={"eps": ball.eps, "network": name, "others": list(found)},
            )  # fmt: skip
            done = run.recorded(EVERYBODY, keys)
            left = left.intersection(*([done.details["left"]] if done is not None else []))


def together(
    left: list[int], ball: WassersteinBall, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[evaluate.Share, dict]:
    """One of `FURTHER` after the other on what stands; with how many images each broke."""
    broken = {"others": len(x) - len(left)}
    for case, attack in FURTHER.items():
        _, evidence = measure(left, ball, attack, model, x, y)
        left, broken[case] = evidence["left"], evidence["broken"]
    return evaluate.share(len(left), len(x)), {"left": left, "broken": broken}


WIDE = "mnist-windows"
CRITICAL = {"standard": 100, "wong2019": 10, "hu2020": 400, "ours": 200, "pgd-at": 100}
SIZES = 5, 9  # pixels a side


def windows(run: Run) -> Iterator[Cell]:
    """What is due to the window, and what to the attack: all three attacks in each window.

    At one budget a network, where its accuracy falls.
    """
    run = run.first(200)
    for name in run.networks():
        budget, given = CRITICAL[name], cache(partial(run.named, name))
        for attack in ("transport", "mirror", "frank-wolfe"):
            for size in SIZES:
                ball = WassersteinBall(budget / PIXELS["mnist"], GroundCost(size))
                own = {"window": size} if attack == "transport" else {}  # others take the ball's
                yield Cell(
                    WIDE, of_table(name, attack, budget) | {"window": size}, run,
                    partial(measure, None, ball, partial(ATTACKS[attack], **own)), given,
                    details={"eps": ball.eps, "network": name, "attack": attack},
                )  # fmt: skip


PICTURES, SHOWN, SPENT = "cifar10-pictures", 6, 10  # eps * 1024


def shown(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict]:
    """Attack the first images that are classified correctly; their pictures are in the details.

    Misread or not, the verdict is that on the attacked image rounded to eight bits, as it is kept.
    """
    ball = WassersteinBall(SPENT / PIXELS["cifar10"])
    some = evaluate.are_right(model, x, y).nonzero()[:SHOWN, 0]
    clean, labels = x[some], y[some]
    done = attacks.transport(model, clean, labels, ball)
    seen = certify(clean, done.x_adv, ball)
    rows = [(255 * part).round().byte().cpu() for part in (clean, done.x_adv)]
    with torch.no_grad():
        read = model(rows[1].to(x) / 255).argmax(1)
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    far = PIXELS["cifar10"] * seen.cost
    return median(seen.cost, "cifar10"), {
        "eps": ball.eps, "indices": some.tolist(), "labels": labels.tolist(),
        "read": read.tolist(), "inside": seen.inside.tolist(),
        "distances": [round(d, 4) for d in far.tolist()],
        "largest_change": round(float((done.x_adv - clean).abs().max()), 4),
        "png": base64.b64encode(bytes(encode_png(sheet).tolist())).decode(),
    }  # fmt: skip


def pictures(run: Run) -> Iterator[Cell]:
    """Six photographs, clean and attacked, as a picture: exact distance * 1024, median."""
    run = replace(run.first(100), dataset="cifar10")
    for name in run.networks():
        yield Cell(
            PICTURES, {"network": name}, run, shown, partial(run.named, name),
            "eps * 1024, median", details={"network": name},
        )  # fmt: skip
