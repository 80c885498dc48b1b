"""Subramanyam (2021), tables II to IV: his defense, and the usual attacks on it and on others."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from wotlab import attacks, models, training
from wotlab.balls import L2Ball, LinfBall
from wotlab.experiments.runner import NETWORKS, Run
from wotlab.experiments.subramanyam import BALL, RULE, STEP, WINDOW, project
from wotlab.experiments.trials import spent, stands

SOURCE = "Subramanyam (2021), table "
LINF = "linf-training-pgd-40"  # what `equal-gradients` trained with PGD-40
STEPS, NOISE = 20, 0.01
ATTACK = {"attack_rule": RULE, "attack_step": STEP, "attack_steps": STEPS, "attack_window": WINDOW}
# His learning rate and epochs are for a GPU; on a CPU the first images, and fewer epochs.
WHOLE = {"mnist": (0.01, 40), "fashion-mnist": (3e-4, 60)}
SHORT_IMAGES, SHORT_EPOCHS, SHORT_LR, BATCH = 10_000, 2, 0.01, 20

ANY = L2Ball(28.0)  # the diameter of [0, 1]^784: CW and DeepFool have no budget there
FAST = {"alpha": 0.2}
SETTINGS = {  # his table VII: the ball, and options of the library's attack
    "pgd-l2": (L2Ball(0.2), FAST | {"steps": 400}),
    "cw": (ANY, {"c": 5.0}),
    "tpgd": (LinfBall(0.2), FAST | {"steps": 10}),
    "ffgsm": (LinfBall(0.2), FAST),
    "mi-fgsm": (LinfBall(0.2), FAST | {"steps": 10}),
    "deepfool": (ANY, {"steps": 2}),
    "autoattack": (L2Ball(0.2), {}),
    "m-di2-fgsm": (LinfBall(0.2), FAST | {"steps": 2}),
}
AT_03 = {  # table III says eps <= 0.3
    name: (LinfBall(0.3) if name != "cw" else ANY, SETTINGS[name][1])
    for name in ("cw", "tpgd", "mi-fgsm", "autoattack", "m-di2-fgsm")
}
FEW = 200  # images for AutoAttack, which takes as long as all others together
TABLE_2 = {"pgd-l2": 37.93, "cw": 4.25, "tpgd": 5.01, "ffgsm": 26.64, "mi-fgsm": 3.16,
           "autoattack": 54.2, "m-di2-fgsm": 9.92}  # fmt: skip
TABLE_3 = {
    "standard": (98.89, 6.2, 5.21, 0.0, 0.0, 0.12),
    "linf": (98.2, 88.58, 39.26, 0.02, 0.0, 0.07),
    "wong2019": (97.28, 94.49, 9.57, 0.0, 0.0, 0.03),
    "hu2020": (92.77, 87.49, 7.65, 0.7, 0.08, 1.09),
    "subramanyam": (98.01, 93.68, 96.66, 90.24, 85.65, 91.85),
}
TABLE_4 = {  # in the order of SETTINGS
    "standard": (27.24, 10.0, 11.95, 12.19, 10.37, 24.0, 25.75, 17.14),
    "subramanyam": (52.2, 10.0, 45.41, 46.66, 46.35, 35.41, 50.22, 48.71),
}


def defended(run: Run) -> tuple[str, Path]:
    """The case of his network in records, and where its weights lie."""
    suffix = "-whole" if run.device.type == "cuda" else ""  # another network than on a CPU
    path = run.checkpoints / f"subramanyam-{run.dataset}{suffix}.safetensors"
    return f"{run.dataset}-clean{suffix}", path


def defend(run: Run, dataset: str = "mnist") -> nn.Module:
    """His training of Wong's network, or what is left of it on a CPU; kept if it is there."""
    run = replace(run, dataset=dataset)
    whole = run.device.type == "cuda"
    case, path = defended(run)
    model = models.build("wong-mnist", seed=0).to(run.device)
    if not run.due("subramanyam-defense", case) and path.exists():
        return models.load_weights(model, path).eval()
    lr, epochs = WHOLE[dataset] if whole else (SHORT_LR, SHORT_EPOCHS)
    attack = partial(
        attacks.pgd, steps=STEPS, step_size=STEP, rule=RULE,
        projection=partial(project, "corrected"), repaired=False, early_stop=False,
    )  # fmt: skip
    defense = training.WassersteinAT(BALL, attack=attack, noise=NOISE, features=model[-2])
    images, labels = run.load("train").tensors(slice(0, None if whole else SHORT_IMAGES))
    fit = training.fit(
        model, (images, labels), defense, epochs=epochs, batch_size=BATCH, lr=lr,
        checkpoint=path.with_suffix(".checkpoint"), progress=True,
    )  # fmt: skip
    model.eval()
    run.number(
        "subramanyam-defense", case, "%", partial(stands, run, model),
        seed=0, details=ATTACK | {"epochs": epochs} | spent(fit, images),
    )  # fmt: skip
    models.save_weights(model, path)  # last: killed before, it goes on from its checkpoint
    return model


def plain(run: Run) -> nn.Module:
    """Wong's network without a defense, for data sets that no network is released for."""
    path = run.checkpoints / f"standard_{run.dataset}.safetensors"
    model = models.build("wong-mnist", seed=0).to(run.device)
    if not path.exists():
        training.fit(model, run.load("train").tensors(), epochs=10, lr=0.05,
                     schedule=lambda epoch: max(0.0, 1 - epoch / 10))  # fmt: skip
        models.save_weights(model, path)
    return models.load_weights(model, path).eval()


def network(run: Run, name: str) -> nn.Module | None:
    """One of the five of table III, or None if its weights are not there."""
    if name == "subramanyam":
        _, path = defended(run)
        if run.anew or not path.exists():
            return defend(run, run.dataset)
        return models.load_weights(models.build("wong-mnist").to(run.device), path).eval()
    if run.dataset != "mnist":
        return plain(run)
    if name in NETWORKS:
        return run.network(name) if name in run.networks() else None
    path = run.checkpoints / f"{LINF}.safetensors"
    if not path.exists():
        return None
    return models.load_weights(models.build("wong-mnist").to(run.device), path).eval()


def attacked(run: Run, what: str, name: str, settings: dict, printed: dict[str, float]) -> None:
    """One network under every attack."""
    runs = {k: run.first(FEW if k == "autoattack" else None) for k in ("clean", *settings)}
    runs = {k: here for k, here in runs.items() if here.due(what, f"{name}-{k}")}
    if not runs:
        return
    model = network(run, name)
    if model is None:
        run.log.missing.add(name)
        print(f"{name}: no weights in the folder of checkpoints; left out")
        return
    for attack, here in runs.items():
        ball, options = settings.get(attack, (None, {}))
        judge = None if ball is None else partial(attacks.library, name=attack, **options)
        here.number(
            what, f"{name}-{attack}", "%", partial(stands, here, model, judge, ball), seed=0,
            printed=printed.get(attack), source=SOURCE + what[-1] if attack in printed else None,
            details={} if ball is None else {"ball": repr(ball), "options": options},
        )  # fmt: skip


def table_2(run: Run) -> None:
    """The network without a defense, at the settings of table VII."""
    attacked(run, "subramanyam-table-2", "standard", SETTINGS, TABLE_2)


def table_3(run: Run) -> None:
    """Five networks at eps = 0.3."""
    for name, values in TABLE_3.items():
        printed = dict(zip(("clean", *AT_03), values, strict=True))
        attacked(run, "subramanyam-table-3", name, AT_03, printed)


def table_4(run: Run) -> None:
    """Fashion-MNIST: without a defense, and with his."""
    run = replace(run, dataset="fashion-mnist")
    for name, values in TABLE_4.items():
        printed = dict(zip(SETTINGS, values, strict=True))
        attacked(run, "subramanyam-table-4", name, SETTINGS, printed)
