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
    frame,
    got,
    hu,
    iwd,
    iwd_tables,
    natural,
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
    "iwd-attacks": iwd.attack_all,
    "iwd-beta": iwd_tables.beta,
    "iwd-table-1": partial(iwd_tables.success, 1),
    "iwd-table-2": partial(iwd_tables.success, 2),
    "iwd-table-3": iwd_tables.defend,
    "iwd-tau": iwd.tau,
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


def main() -> None:
    if sys.argv[1:2] == ["zoo"]:  # it needs neither data nor networks of others
        return zoo.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m wotlab.experiments", description=__doc__)
    parser.add_argument("name", choices=sorted([*EXPERIMENTS, "zoo"]), help="which experiment")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="root of the data sets, as torchvision lays them out",
    )
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"),
                        help="networks that Wong et al. and Hu et al. published, by their file "
                             "names, and where ours are kept")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the records")
    parser.add_argument("--images", type=int, default=1000, help="the first so many test images")
    parser.add_argument("--epochs", type=int,
                        help="of trainings on all images (iwd): by default a short one of some "
                             "images on a CPU, as long as in the paper on a GPU")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--anew", action="store_true", help="measure what is recorded again")
    given = vars(parser.parse_args())
    if not given["data"].is_dir():
        parser.error(f"--data: there is no folder {given['data']}")
    experiment = EXPERIMENTS[given.pop("name")]
    given["out"].mkdir(parents=True, exist_ok=True)
    given["device"] = torch.device(given["device"])
    experiment(frame.Run(**given))


if __name__ == "__main__":
    main()
