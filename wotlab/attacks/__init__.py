"""Attacks: `attack(model, x, y, ball, ...) -> AttackResult`. `transport` is the one to use.

Attacks on the plan (`transport`, `mirror_ascent`, `frank_wolfe`) keep each iterate in the
Wasserstein ball; `radius` finds the smallest eps that breaks each image. `fgsm` and `pgd` step
in pixels and project, on any ball; `langevin` samples an l-infinity ball. `iwda`, `stadv` and
`adef` bound nothing: they keep patches, or bend the image a little; `eot` makes images that fool
under random transformations. `library` runs other libraries' attacks, `transfer` tries images
that were made against another network.
"""

from wotlab.attacks.adef import adef
from wotlab.attacks.eot import eot
from wotlab.attacks.frank_wolfe import frank_wolfe
from wotlab.attacks.iwda import iwda
from wotlab.attacks.langevin import langevin
from wotlab.attacks.library import library
from wotlab.attacks.mirror import mirror_ascent
from wotlab.attacks.pgd import fgsm, pgd
from wotlab.attacks.radius import Radius, radius
from wotlab.attacks.result import AttackResult
from wotlab.attacks.stadv import stadv
from wotlab.attacks.transfer import transfer
from wotlab.attacks.transport import transport

__all__ = [
    "AttackResult",
    "Radius",
    "adef",
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
