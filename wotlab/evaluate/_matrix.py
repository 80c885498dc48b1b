"""Every network against every threat: one radius an image, from which all tables follow."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wotlab._base import checks, settings
from wotlab._base.files import replacing
from wotlab._base.modes import eval_mode
from wotlab._base.networks import check
from wotlab.evaluate._sanity import Doubt, sanity
from wotlab.evaluate._shares import Share, share
from wotlab.evaluate._threats import Threat

Budgets = Mapping[str, float]  # of threats by their names
Strengths = Mapping[str, Sequence[float]]
DOUBTED = 100  # images that `sanity` looks at


@dataclass(frozen=True)
class Field:
    """One network under one threat.

    Attributes
    ----------
    radii : Tensor (B,)
        On the CPU, in double precision.
    forward, backward : int
        Images that went through the network, and gradients that came back.
    seconds : float
    doubts : list of Doubt
        What `sanity` says of the threat's attack, at the budget that breaks half of the images, or
        at the largest that was tried.

    Examples
    --------
    >>> import torch
    >>> from wotlab.evaluate import Field
    >>> field = Field(torch.tensor([0.0, 0.1, 0.4]))
    >>> print(field.accuracy(0.1))
    33.3% (6.1% to 79.2%), 1 of 3
    """

    radii: Tensor
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    doubts: tuple[Doubt, ...] = ()

    def accuracy(self, eps: float) -> Share:
        """The share of images that are broken by no change of at most eps."""
        return share(int((self.radii > eps).sum()), len(self.radii))

    @property
    def half(self) -> float:
        """The smallest budget that breaks half of the images; infinite where none does."""
        return float(self.radii.sort().values[(len(self.radii) - 1) // 2])


@dataclass(frozen=True)
class Matrix:
    r"""Every network under every threat.

    Attributes
    ----------
    fields : dict of dict of Field
        By network and threat.
    units : dict of str
        By threat.

    Examples
    --------
    >>> import torch
    >>> from wotlab.evaluate import Field, Matrix
    >>> row = {"a": Field(torch.tensor([0.1, 0.4])), "b": Field(torch.tensor([3.0, 1.0]))}
    >>> matrix = Matrix({"net": row}, {"a": "eps", "b": "pixels"})
    >>> matrix.union("net", {"a": 0.2, "b": 2.0}).count  # stand both
    0
    """

    fields: dict[str, dict[str, Field]]
    units: dict[str, str]

    def accuracy(self, eps: Budgets) -> dict[str, dict[str, Share]]:
        """Accuracy of each network under each threat that has a budget here."""
        _known(eps, self.units)
        return {
            name: {threat: row[threat].accuracy(value) for threat, value in eps.items()}
            for name, row in self.fields.items()
        }

    def union(self, network: str, eps: Budgets) -> Share:
        """The share of images that no threat breaks within its budget."""
        _known(eps, self.units)
        row = self.fields[network]
        stand = torch.stack([row[threat].radii > value for threat, value in eps.items()]).all(0)
        return share(int(stand.sum()), len(stand))

    def half(self, network: str) -> dict[str, float]:
        """The budget of each threat that breaks half of a network's images.

        One rule to compare budgets of different threats: those at which an undefended network
        is half as good as a coin's toss between broken and not.
        """
        return {threat: field.half for threat, field in self.fields[network].items()}

    def competitiveness(
        self, strengths: Strengths, *, least: float = 0.0
    ) -> dict[str, tuple[float, float]]:
        r"""How near each network comes to the best one under each threat, at each strength.

        .. math:: \mathrm{CR} = 100\, \frac{\mathrm{acc}(\mathrm{network}, \mathrm{threat},
            \varepsilon)}{\max_{\mathrm{networks}} \mathrm{acc}(\cdot, \mathrm{threat},
            \varepsilon)}

        Its mean and its least value over all threats and strengths, after the competitiveness
        ratio of Dai et al. (2023). Theirs divides by the accuracy of a network that was trained
        against that attack at that strength, and counts clean accuracy as one case; this one needs
        no such networks. Strengths at which no network stands are left out, and those where the
        best keeps less than `least` of the images, in [0, 1]: there a few images make the ratio.
        """
        _known(strengths, self.units)
        checks.share("least", least)
        ratios: dict[str, list[float]] = {name: [] for name in self.fields}
        for threat, values in strengths.items():
            for eps in values:
                stand = {k: row[threat].accuracy(eps).value for k, row in self.fields.items()}
                if (best := max(stand.values())) > 0 and best >= least:
                    for name, value in stand.items():
                        ratios[name].append(100 * value / best)
        if not any(ratios.values()):
            raise ValueError("strengths must leave some network standing; these leave none")
        return {name: (sum(each) / len(each), min(each)) for name, each in ratios.items()}

    def steepest(self, strengths: Strengths) -> dict[str, float]:
        """The largest fall of each network's accuracy from one strength to the next, in [0, 1].

        A network whose accuracy falls off a cliff is one whose number at one budget says little.
        The stability constant of Dai et al. (2023) asks something like it of attacks that were
        seen in training and of others near them.
        """
        _known(strengths, self.units)
        falls = {}
        for name, row in self.fields.items():
            curves = (
                [row[threat].accuracy(eps).value for eps in (0.0, *sorted(values))]
                for threat, values in strengths.items()
            )
            falls[name] = max(a - b for curve in curves for a, b in pairwise(curve))
        return falls


def matrix(
    networks: Mapping[str, nn.Module],
    threats: Mapping[str, Threat],
    images: tuple[Tensor, Tensor],
    *,
    folder: str | Path | None = None,
    batch_size: int = 500,
    progress: bool = False,
) -> Matrix:
    """The radius of each image under each threat, for each network.

    Parameters
    ----------
    networks : dict of nn.Module
        By names for files: images in [0, 1] to logits. One of them gives a row.
    threats : dict of Threat
        By names for files.
    images : (Tensor, Tensor)
        Images (B, C, H, W) in [0, 1] and labels (B,), on the networks' device.
    folder : path, optional
        Where each field of the matrix is kept as soon as it is there. A call with the same
        folder goes on where another one was killed.
    batch_size : int
        Images that a search is given at once.
    progress : bool

    Returns
    -------
    Matrix

    Raises
    ------
    ValueError
        For no network, no threat or no image, names that no file can have, and a folder that
        holds a field of another network, of other images or of another threat; as the attacks
        do.

    Notes
    -----
    A radius is an upper bound: a stronger search may find a smaller one. What can be proven from
    below is in `certified_radius`. Accuracy under threats of different units is only comparable
    by a rule that says which budgets belong together, such as `Matrix.half`.

    Examples
    --------
    >>> from wotlab import LinfBall, WassersteinBall, data, evaluate, models
    >>> Threat, images = evaluate.Threat, data.load("digits").tensors(slice(10))
    >>> networks = {"net": models.load("digits-standard")}
    >>> threats = {"linf": Threat.nearest(LinfBall(1.0), restarts=0)}
    >>> matrix = evaluate.matrix(networks, threats, images)
    >>> matrix.accuracy({"linf": 0.01})["net"]["linf"].count  # of 10
    10
    """
    for kind, named in (("networks", networks), ("threats", threats)):
        if not isinstance(named, Mapping) or not named:
            raise ValueError(f"{kind} must be a dict with a name for each; got {named!r:.80}")
        for name in named:
            if not isinstance(name, str) or not name or {*name} & {*"/\\:"} or name[0] == ".":
                raise ValueError(f"{kind} must have names that a file can have; got {name!r}")
    for threat in threats.values():
        checks.instance("each of threats", threat, Threat)
    checks.count("batch_size", batch_size)
    x, y = images
    fields: dict[str, dict[str, Field]] = {name: {} for name in networks}
    with tqdm(total=len(networks) * len(threats), disable=not progress) as bar:
        for name, model in networks.items():
            with eval_mode(model):
                check(model, x, y)
            for which, threat in threats.items():
                bar.set_postfix(network=name, threat=which)
                path = None if folder is None else Path(folder) / name / f"{which}.json"
                fields[name][which] = _field(model, threat, x, y, path, batch_size)
                bar.update()
    return Matrix(fields, {name: threat.unit for name, threat in threats.items()})


def _field(
    model: nn.Module, threat: Threat, x: Tensor, y: Tensor, path: Path | None, batch_size: int
) -> Field:
    """Measure a field, or read it."""
    if path is None:
        return _measured(model, threat, x, y, batch_size)
    words = _words(model, threat, x, y, batch_size)
    if path.exists():
        return _read(path, words)
    field = _measured(model, threat, x, y, batch_size)
    told = asdict(replace(field, doubts=())) | {
        "radii": [r if math.isfinite(r) else None for r in field.radii.tolist()],
        "doubts": [asdict(doubt) for doubt in field.doubts], "of": words,
    }  # fmt: skip
    with replacing(path) as part:
        part.write_text(json.dumps(told, indent=1) + "\n")
    return field


def _measured(model: nn.Module, threat: Threat, x: Tensor, y: Tensor, batch_size: int) -> Field:
    start = time.perf_counter()
    with eval_mode(model) as passes:
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        radii = torch.cat([threat.find(model, *part).double().cpu() for part in parts])
        if radii.shape != y.shape or bool((radii.isnan() | (radii < 0)).any()):
            raise ValueError(
                f"find must return {len(y)} radii of at least 0; got {tuple(radii.shape)}, from "
                f"{float(radii.min())}"
            )
    field = Field(radii, passes.forward, passes.backward, time.perf_counter() - start)
    return replace(field, doubts=tuple(_doubts(field, model, threat, x, y)))


def _doubts(field: Field, model: nn.Module, threat: Threat, x: Tensor, y: Tensor) -> list[Doubt]:
    if threat.attack is None or threat.ball is None:
        return []
    # a search that breaks few has the more to answer for
    eps = field.half if field.half < math.inf else threat.ball.eps
    if eps == 0:
        return []
    ball = replace(threat.ball, eps=eps)
    noise = torch.Generator(x.device).manual_seed(0)
    return sanity(model, x[:DOUBTED], y[:DOUBTED], threat.attack, ball, generator=noise)


def _words(
    model: nn.Module, threat: Threat, x: Tensor, y: Tensor, batch_size: int
) -> settings.Words:
    """What a field is of."""
    weights = (settings.as_bytes(w) for w in model.state_dict().values())
    return {
        "network": settings.hashed(repr(model), *weights),
        "images": settings.hashed(settings.as_bytes(x), settings.as_bytes(y)),
        "batch_size": settings.of_number(batch_size),
        **settings.describe("threat", threat),
    }


def _read(path: Path, words: settings.Words) -> Field:
    told = json.loads(path.read_text())
    if other := settings.differences(told["of"], words):
        raise ValueError(
            f"folder holds {path.name} of another measurement, they differ in "
            f"{', '.join(other[:5])}; name another folder, or delete {path}"
        )
    listed = [math.inf if r is None else r for r in told["radii"]]
    radii = torch.tensor(listed, dtype=torch.double)
    doubts = tuple(Doubt(**doubt) for doubt in told["doubts"])
    return Field(radii, told["forward"], told["backward"], told["seconds"], doubts)


def _known(given: Mapping[str, object], units: Mapping[str, str]) -> None:
    """Names of threats, at least one, all of the matrix."""
    unknown = [name for name in given if name not in units]
    if unknown or not given:
        raise ValueError(
            f"budgets must be given by threats of this matrix, {', '.join(units)}; got "
            f"{', '.join(unknown) or 'none'}"
        )
