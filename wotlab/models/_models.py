"""The papers' networks by name. Each takes images in [0, 1] and returns logits."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn
from torchvision import models as vision

from wotlab._base import checks
from wotlab._base.files import replacing
from wotlab.models import _lite
from wotlab.models._networks import OWN

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: The folder with the weights that ship, a card beside each; `load` reads it.
SHIPPED = Path(__file__).parent / "weights"
#: The classes of the data set "imagenet10" among ImageNet's 1,000, in its order.
IMAGENET10 = (425, 649, 970, 972, 973, 975, 978, 979, 980, 991)


class Normalise(nn.Module):
    """(x - mean) / std a channel, so that the model takes pixels in [0, 1] as they are.

    Parameters
    ----------
    mean, std : sequence of float
        One a channel.

    Examples
    --------
    >>> import torch
    >>> from wotlab import models
    >>> models.Normalise([0.5], [0.25])(torch.tensor([[[[0.25, 1.0]]]]))
    tensor([[[[-1.,  2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ClassSubset(nn.Module):
    """A classifier that knows only some of another's classes: `model(x)[:, classes]`.

    Parameters
    ----------
    model : nn.Module
        Returns logits (B, K). It is held, not copied; load its weights before.
    classes : sequence of int
        Which of the K, each once: class j here is `classes[j]` there. `IMAGENET10` makes a
        network with ImageNet's 1,000 classes one for the data set "imagenet10".

    Raises
    ------
    ValueError
        For classes that are none, repeated, negative or no integers; when called, for a class
        that the model has no logit of.

    Examples
    --------
    >>> import torch
    >>> from wotlab import data, models
    >>> model = models.ClassSubset(models.load("digits-standard"), [3, 8])
    >>> model(data.load("digits").tensors(slice(5))[0]).shape
    torch.Size([5, 2])
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]):
        super().__init__()
        whole = all(isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in classes)
        if not whole or not 0 < len(classes) == len(set(classes)):
            raise ValueError(
                f"classes must be distinct integers from 0 on, at least one; got {classes!r}"
            )
        self.model, self.most = model, max(classes)
        self.register_buffer("classes", torch.tensor(list(classes)), persistent=False)
        self.training = model.training  # a frozen network must not look like one in training

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if self.most >= logits.shape[1]:
            raise ValueError(
                f"classes must be below {logits.shape[1]}, the number of the model's logits; "
                f"got {self.most}"
            )
        return logits[:, self.classes]


TORCHVISION = {
    "resnet101": (vision.resnet101, vision.ResNet101_Weights.DEFAULT),
    "inception-v3": (vision.inception_v3, vision.Inception_V3_Weights.DEFAULT),
}


def names() -> list[str]:
    """Names that `build` knows.

    Examples
    --------
    >>> from wotlab import models
    >>> "wong-mnist" in models.names()
    True
    """
    return [*OWN, *TORCHVISION, _lite.NAME]


def build(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | None = None,
    seed: int | None = None,
) -> nn.Module:
    """A network of the papers that takes images in [0, 1] and returns logits.

    Parameters
    ----------
    name : str
        For 28x28: "wong-mnist" (Wong et al., 2019; Hu et al., 2020), "cw-mnist" (Carlini and
        Wagner, 2017; GOT), "arch-a" and "arch-b" (Adversarial Transport; B with the strides
        that make it compose). For 32x32: "resnet18", "wrn-34-10"; "cifar-small" trains on a CPU;
        "wong-cifar" is "wong-mnist" for these (Wong and Kolter, 2018). For 8x8: "digits-small",
        and "digits-tiny" with one hidden layer of 24, small enough for integer programs.
        For photographs: torchvision's "resnet101" (224x224) and "inception-v3" (299x299), and
        "efficientnet-lite0" (224x224), for which `pip install "wotlab[imagenet]"`.
    num_classes : int, optional
        10 by default; 1,000 for photographs.
    in_channels : int, optional
        1 for digits, 3 for colour by default; networks for photographs take 3.
    weights : "default", optional
        Only for photographs: the published weights; torchvision's are downloaded and checked.
    seed : int, optional
        Of the initial weights; the global random state is left alone. None: the global one.

    Returns
    -------
    nn.Module
        In train mode, as PyTorch makes it. Networks for photographs hold their normalisation; for
        another one put `Normalise` before a network. Inception's auxiliary head is left out
        (its output would be no logits of the model).

    Raises
    ------
    ValueError
        For an unknown name, channels or classes out of range, or weights where there are none.
    ConnectionError
        If weights cannot be downloaded.
    ImportError
        For "efficientnet-lite0" without the packages that hold it.

    Examples
    --------
    >>> import torch
    >>> from wotlab import models
    >>> model = models.build("wong-mnist", seed=0)
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}; got {name!r}")
    for what, count in (("num_classes", num_classes), ("in_channels", in_channels)):
        if count is not None:
            checks.count(what, count)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if name in OWN:
            if weights is not None:
                raise ValueError(f"weights must be None for {name}: none are published with it")
            builder, channels = OWN[name]
            return builder(in_channels or channels, num_classes or 10)
        if in_channels not in (None, 3):
            raise ValueError(f"in_channels must be 3 for {name}; got {in_channels}")
        if name == _lite.NAME:
            network = _lite.efficientnet_lite0(num_classes, weights)
            return nn.Sequential(Normalise(*_lite.NORMALISATION), network)
        return nn.Sequential(Normalise(*IMAGENET), _torchvision(name, num_classes, weights))


def _torchvision(name: str, classes: int | None, weights: str | None) -> nn.Module:
    builder, published = TORCHVISION[name]
    if weights not in (None, "default"):
        raise ValueError(f'weights must be None or "default"; got {weights!r}')
    if weights and classes not in (None, 1000):
        raise ValueError(f"num_classes must be 1000 with published weights; got {classes}")
    options = {"init_weights": True} if name == "inception-v3" else {}
    network = builder(num_classes=classes or 1000, **options)
    if weights:
        try:
            state = published.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except OSError as error:
            raise ConnectionError(
                f"the weights of {name} could not be downloaded ({error}); check the network, or "
                f"put {published.url.split('/')[-1]} into torch.hub's checkpoints folder"
            ) from error
        network.load_state_dict(state)
    if isinstance(network, vision.Inception3):
        network.aux_logits, network.AuxLogits = False, None
        # its weights want (x - 0.5) / 0.5, which it makes itself from ImageNet's normalisation
        network.transform_input = True
    return network


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Store a model's weights as safetensors; the file is replaced whole or not at all.

    Parameters
    ----------
    model : nn.Module
    path : path
        By convention with the suffix .safetensors, by which `load_weights` knows what it is.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from wotlab import models
    >>> with tempfile.TemporaryDirectory() as name:
    ...     path = Path(name) / "net.safetensors"
    ...     models.save_weights(models.build("digits-small"), path)
    ...     [file.name for file in Path(name).iterdir()]
    ['net.safetensors']
    """
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    with replacing(Path(path)) as part:
        part.write_bytes(safetensors.save(state))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Read weights into `model`, in place, and return it.

    Parameters
    ----------
    model : nn.Module
    path : path
        A .safetensors file, or one of torch.save (.pt, .pth; read without running any code)
        that holds the weights by themselves, under `net`, or under `state_dict` (there perhaps
        in a list of one, as Hu et al. published theirs).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or its weights are not those of this network; says which differ.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from wotlab import models
    >>> model, other = (models.build("digits-small", seed=seed) for seed in (0, 1))
    >>> with tempfile.TemporaryDirectory() as name:
    ...     models.save_weights(model, Path(name) / "net.safetensors")
    ...     other = models.load_weights(other, Path(name) / "net.safetensors")
    >>> pairs = zip(model.parameters(), other.parameters())
    >>> all(bool((a == b).all()) for a, b in pairs)
    True
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}")
    state: object  # until it is looked into
    try:
        if path.suffix == ".safetensors":
            state = safetensors.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}); fetch it again") from error
    except Exception as error:  # pickle.UnpicklingError and its like: code, or no weights at all
        raise ValueError(f"{path} holds something else than weights ({error})") from error
    for key in ("net", "state_dict"):
        if isinstance(state, dict) and key in state:
            state = state[key]
    if isinstance(state, (list, tuple)) and len(state) == 1:
        state = state[0]
    if not isinstance(state, dict) or not all(isinstance(w, Tensor) for w in state.values()):
        raise ValueError(
            f"{path} must hold tensors by their names, as model.state_dict() gives them; "
            f"got {type(state).__name__}"
        )
    weights = {str(k).removeprefix("module."): w for k, w in state.items()}  # DataParallel's
    return _put(model, weights, path)


def _put(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> nn.Module:
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shaped = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unexpected or shaped:
        raise ValueError(
            f"{path} holds weights of another network: missing {missing}, unexpected {unexpected}, "
            f"of another shape {sorted(shaped)}"
        )
    model.load_state_dict(state)
    return model


def shipped() -> list[str]:
    """Names that `load` knows: networks trained here whose weights are part of the package.

    Examples
    --------
    >>> from wotlab import models
    >>> [name for name in models.shipped() if name.startswith("mnist-s")]
    ['mnist-smoothed', 'mnist-split', 'mnist-standard']
    """
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def card(name: str) -> dict:
    """What is known of a network that ships.

    Parameters
    ----------
    name : str
        One of `shipped()`.

    Returns
    -------
    dict
        `network`, `num_classes`, `in_channels`: as for `build`. `training`, `data`, `seed` and
        `command`: how it was made, and how to make it again. `history`: a dict an epoch, as in
        `training.Fit`. `clean` and `robust`: shares of the test images with their intervals,
        measured in double precision. `sha256`: of the file of weights. `commit`, `versions`,
        `device`, `date`.

    Raises
    ------
    ValueError
        For a name that is not in `shipped()`.

    Examples
    --------
    >>> from wotlab import models
    >>> card = models.card("mnist-standard")
    >>> card["network"], card["clean"]["count"], card["clean"]["total"]
    ('wong-mnist', 990, 1000)
    """
    if name not in shipped():
        raise ValueError(f"name must be one of {', '.join(shipped())}; got {name!r}")
    return json.loads((SHIPPED / f"{name}.json").read_text())


def load(name: str) -> nn.Module:
    """A network that ships with the package, trained: the same on every machine.

    Parameters
    ----------
    name : str
        One of `shipped()`; `card(name)` says what it is.

    Returns
    -------
    nn.Module
        In eval mode, with weights in float32 (on disk in half precision, to which they were
        rounded before anything was measured). What a computation gives is the same to more digits
        on every processor if it runs in double precision: `load(name).double()`.

    Raises
    ------
    ValueError
        For an unknown name, or a file of weights that is not the one of the card.

    Examples
    --------
    >>> from wotlab import data, models
    >>> x, y = data.load("mnist-5k").tensors(slice(5))
    >>> models.load("mnist-standard").double()(x.double()).argmax(1), y
    (tensor([0, 1, 2, 3, 4]), tensor([0, 1, 2, 3, 4]))
    """
    told = card(name)
    path = SHIPPED / f"{name}.safetensors"
    held = path.read_bytes()
    if hashlib.sha256(held).hexdigest() != told["sha256"]:
        raise ValueError(f"{path} is not the file that its card describes; install wotlab again")
    model = build(
        told["network"], num_classes=told["num_classes"], in_channels=told["in_channels"], seed=0
    )
    return _put(model, safetensors.load(held), path).eval()
