"""The papers' networks by name, and those that ship: images in [0, 1] in, logits out."""

from wotlab.models._models import (
    IMAGENET10,
    SHIPPED,
    ClassSubset,
    Normalise,
    build,
    card,
    load,
    load_weights,
    names,
    save_weights,
    shipped,
)

__all__ = [
    "IMAGENET10",
    "SHIPPED",
    "ClassSubset",
    "Normalise",
    "build",
    "card",
    "load",
    "load_weights",
    "names",
    "save_weights",
    "shipped",
]
