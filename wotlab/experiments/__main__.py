"""Command line of the experiments."""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from wotlab.experiments import (
    baselines,
    digits,
    dro,
    got,
    hu,
    iwd_attacks,
    iwd_tables,
    natural,
    runner,
    strength,
    subramanyam,
    wasserstein_at,
    zoo,
)

EXPERIMENTS = {
    "digits-chain-steps": digits.chain_steps,
    "digits-got-settings": digits.got_settings,
    "equal-gradients": dro.equal_gradients,
    "got-over-seeds": got.over_seeds,
    **{f"got-table-{k}": partial(got.table, k) for k in got.TABLES},
    **{f"got-table-{k}": partial(got.sweep, k) for k in got.SWEEPS},
    "hu-table-1": hu.table_1,
    "hu-table-2": hu.table_2,
    "hu-table-3": hu.table_3,
    "hu-table-4": natural.hu_table_4,
    "hu-table-5": hu.table_5,
    "hu-table-6": natural.hu_table_6,
    "iwd-attacks": iwd_attacks.attack_all,
    "iwd-beta": iwd_tables.beta,
    "iwd-table-1": partial(iwd_tables.success, 1),
    "iwd-table-2": partial(iwd_tables.success, 2),
    "iwd-table-3": iwd_tables.defend,
    "iwd-tau": iwd_attacks.tau,
    "regniez-table-1": partial(dro.regniez, 1),
    "regniez-table-2": partial(dro.regniez, 2),
    "regniez-table-4": partial(dro.regniez, 4),
    "regniez-table-5": partial(dro.regniez, 5),
    "strength": strength.strength,
    "subramanyam-defense": baselines.defend,
    "subramanyam-table-1": subramanyam.table_1,
    "subramanyam-table-2": baselines.table_2,
    "subramanyam-table-3": baselines.table_3,
    "subramanyam-table-4": baselines.table_4,
    "subramanyam-table-5": natural.subramanyam_table_5,
    "subramanyam-table-6": natural.subramanyam_table_6,
    "wasserstein-at": wasserstein_at.train,
}


# What --epochs is for: trainings of which a short and a long version are recorded.
OF_EPOCHS = {"iwd-beta", "iwd-table-1", "iwd-table-2", "iwd-table-3"}


def count(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text!r}")
    return int(text)


def device(text: str) -> torch.device:
    """A device that is there."""
    try:
        return torch.zeros(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # no such kind; built or started without it
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} is not at hand: {reason}") from error


def folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def main() -> None:
    if sys.argv[1:2] == ["zoo"]:  # it needs neither data nor networks of others
        return zoo.main(sys.argv[2:])
    parser = runner.Parser(prog="python -m wotlab.experiments", description=__doc__)
    parser.add_argument("name", choices=sorted([*EXPERIMENTS, "zoo"]), help="which experiment")
    parser.add_argument(
        "--data",
        type=folder,
        required=True,
        help="root of the data sets, as torchvision lays them out",
    )
    parser.add_argument("--checkpoints", type=folder,
                        help="folder of the networks that Wong et al. and Hu et al. published, by "
                             "their file names, and of ours, which are not trained again while "
                             "they lie there; ./checkpoints by default")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the records")
    parser.add_argument("--images", type=count, default=1000, help="the first so many test images")
    parser.add_argument("--epochs", type=count,
                        help=f"of trainings on all images ({', '.join(sorted(OF_EPOCHS))}): by "
                             "default a short one of some images on a CPU, as long as in the "
                             "paper on a GPU")  # fmt: skip
    parser.add_argument("--device", type=device,
                        default="cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    parser.add_argument("--anew", action="store_true", help="measure what is recorded again")
    parser.add_argument("--only", metavar="CASE",
                        help="measure this case alone, or those of a pattern such as "
                             "'fast-*'")  # fmt: skip
    given = vars(parser.parse_args())
    name = given.pop("name")
    if given["epochs"] and name not in OF_EPOCHS:
        parser.error(f"argument --epochs: {name} does not take it")
    given["checkpoints"] = given["checkpoints"] or Path("checkpoints")
    for option in ("checkpoints", "out"):
        try:
            given[option].mkdir(parents=True, exist_ok=True)
        except OSError:
            parser.error(f"argument --{option}: no folder can be made at {given[option]}")
    run = runner.Run(**given)
    try:
        EXPERIMENTS[name](run)
    except (FileNotFoundError, runner.Refused) as error:  # data or weights; too many images
        parser.error(f"{name} cannot go on: {error}")
    if not run.log.cases:
        parser.error(f"{name} found nothing to do: it needs networks in {run.checkpoints}")
    if not run.log.chosen:
        parser.error(
            f"argument --only: no case is {run.only!r}; there are "
            f"{', '.join(sorted(run.log.cases))}"
        )
    if run.log.missing and not run.log.measured:
        parser.error(
            f"{name} found nothing to do: there are no weights of "
            f"{', '.join(sorted(run.log.missing))} in {run.checkpoints}"
        )
    if not run.log.measured:
        print(f"everything is recorded already in {run.out}; --anew measures it again")


if __name__ == "__main__":
    main()
