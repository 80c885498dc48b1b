"""Attacks on a classifier, `attack(model, x, y, ball, ...) -> AttackResult`.

`transport` is the one to use.

Attacks on the plan (`transport`, `mirror_ascent`, `frank_wolfe`) keep each iterate in the
Wasserstein ball; `radius` finds the smallest eps that breaks each image. `fgsm` and `pgd` step
in pixels and project, on any ball; `langevin` samples an l-infinity ball. `iwda`, `stadv` and
`adef` bound nothing: they keep patches, or bend the image a little; `eot` makes images that fool
under random transformations. `library` runs other libraries' attacks, `transfer` tries images
that were made against another network.
"""

from wotlab.attacks._adef import adef
from wotlab.attacks._eot import eot
from wotlab.attacks._external import library
from wotlab.attacks._frank_wolfe import frank_wolfe
from wotlab.attacks._iwda import iwda
from wotlab.attacks._langevin import langevin
from wotlab.attacks._loop import climb
from wotlab.attacks._mirror_ascent import Mirror, mirror_ascent
from wotlab.attacks._objective import Objective
from wotlab.attacks._pgd import fgsm, pgd
from wotlab.attacks._radius import Radius, radius
from wotlab.attacks._result import Attack as Attack  # a type, for whoever takes one
from wotlab.attacks._result import AttackResult
from wotlab.attacks._stadv import stadv
from wotlab.attacks._transfer import transfer
from wotlab.attacks._transport import transport

__all__ = [
    "AttackResult",
    "Mirror",
    "Objective",
    "Radius",
    "adef",
    "climb",
    "eot",
    "fgsm",
    "frank_wolfe",
    "iwda",
    "langevin",
    "library",
    "mirror_ascent",
    "pgd",
    "radius",
    "stadv",
    "transfer",
    "transport",
]
