"""Experiments on a few small images: they go on where they stopped, and record what they say."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import wotlab
from wotlab import LinfBall, attacks, models, results, training
from wotlab.experiments import (
    dro,
    got,
    hu,
    runner,
    subramanyam,
    trials,
)
from wotlab.experiments.runner import perform
from wotlab.projections import constrained_sinkhorn


@pytest.fixture(autouse=True)
def quick(single_thread, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(hu, "STEPS", 40)


def test_rows_of_hu_stop_as_their_paper_says():
    """Total mass alone: all but Wong's attack, which has its own projection."""
    x = torch.zeros(1, 1, 6, 6)
    x[..., 2:4, 2:4] = torch.tensor([[0.9, 0.4], [0.6, 0.8]])
    w = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    cost = wotlab.GroundCost()
    expected = constrained_sinkhorn(x, w, 0.1, cost, rule="published")
    ours = constrained_sinkhorn(x, w, 0.1, cost)
    assert (expected.image - ours.image).abs().max() > 1e-4
    used = {v["projection"] for name, v in hu.ATTACKS.items() if name != "wong"}
    assert used == {hu.HU, hu.cold}  # none is left to the default
    for projection in used:
        assert torch.equal(projection(x, w, 0.1, cost).image, expected.image)


def test_hu_radius_is_where_the_image_breaks(run, small):
    model, x, y = small
    run = replace(run, only="standard-[hw]*")
    perform(run, hu.table(2, run))
    found = results.table("hu-growing", "attack", folder=run.out, network="standard")
    radii = found["hu"].details["radii"]
    assert found["hu"].printed == 0.135 and len(radii) == 6
    tests = {case: found[case].details["stop_test"] for case in ("hu", "wong")}
    assert tests == {"hu": "published", "wong": "dual"}
    clean = (model(x).argmax(1) != y).tolist()
    for radius, wrong in zip(radii, clean, strict=True):
        assert (radius == 0) if wrong else (radius is None or radius > 0)
    # the published step finds less room than Hu's: that is table 2
    assert found["hu"].value <= found["wong"].value
    details = found["hu"].details
    assert details["w_over_eps_worst"] >= details["w_over_eps_mean"] > 0
    assert details["largest_mass_error"] > 0  # the stop test lets mass slip


def test_released_radii(run, small, tmp_path):
    (tmp_path / hu.RADII).write_text("index\tradius\n1\t0.1\n2\tinf\n3\t0\n4\t0.3\n5\t9\n6\t0.1\n")
    value, details = hu.released(run)
    assert value == pytest.approx((0.1 + 0.4 + 0.3 + 0.4 + 0.1) / 5)  # at most 40 steps of 0.01
    assert details["radii"] == [0.1, None, 0.0, 0.3, 9.0, 0.1]
    assert details["accuracy"][100] == pytest.approx(100 * 3 / 6)  # 0.1276: inf, 0.3, 9


def test_natural_tables_have_the_printed_numbers_and_growing_distances(run):
    perform(run, hu.accuracies("hu", 4, run))
    perform(run, hu.distances("hu", ("w", "l2"), 6, run))
    perform(run, hu.distances("subramanyam", ("procrustes", "w"), 6, run))
    case = ("transformation", "size")
    four = results.table("hu-table-4", *case, folder=run.out, network="standard")
    assert four["translation", 20].printed == 48.3 and len(four) == 9
    six = results.table("hu-table-6", "measure", *case, folder=run.out)
    for kind, sizes in hu.SIZES["hu"].items():
        w = [six["w", kind, size].value for size in sizes]
        assert w[0] > 0 and (kind == "rotation" or w == sorted(w))
    for measure in ("w", "l2"):
        assert six[measure, "rotation", 20].value > six[measure, "rotation", 5].value > 0
    assert six["l2", "blur", 3].printed == 3.2
    last = results.table("subramanyam-table-6", "measure", *case, folder=run.out)
    assert all(0 < r.value < 1 for (measure, *_), r in last.items() if measure == "procrustes")
    assert last["procrustes", "translation", 5].printed == 0.016
    assert last["w", "translation", 5].printed is None  # its W has another unit


def test_subramanyam_counts_what_keeps_the_ball(run):
    perform(run, subramanyam.table_1(run))
    found = results.table("subramanyam-table-1", "variant", folder=run.out, network="standard")
    assert set(found) == {f"{k}{end}" for k in subramanyam.UPDATES for end in ("", "-clamped")}
    for record in found.values():
        settings = {"rule": "sign", "step": 0.02, "steps": 10, "window": 1}
        assert settings.items() <= record.details.items()
        assert record.details["accuracy_by_images_inside_the_ball"] >= record.value
    # erratum a1: the printed formula brightens every pixel that holds mass
    assert found["printed"].details["mass_change_mean"] > 0.1
    assert found["printed"].printed == 1.7 and found["l2"].printed is None
    assert found["printed-clamped"].printed == 1.7
    # without a clamp its steps leave [0, 1] for good where there is no ink
    assert found["printed-clamped"].value <= found["printed"].value


def test_subramanyams_weights_are_swept_one_at_a_time(run):
    cells = list(subramanyam.settings(run))
    settings = sum(len(values) for values in subramanyam.SWEEP.values())
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 2 * settings
    cells = [cell for cell in cells if cell.keys["network"] == "hu2020"]
    model, x, y = next(subramanyam.targeted(run)).given()
    printed = {"tau": 0.01, "eta": 0.001, "gamma": 0.5}
    middle = [c for c in cells if printed.items() & c.keys.items()]
    ball = replace(subramanyam.BALL, ground_cost=wotlab.GroundCost(subramanyam.WIDE))
    plain = [subramanyam.attacked(v, model, x, y, ball=ball)[0] for v in subramanyam.SWEPT]
    assert [cell.measure(model, x, y)[0] for cell in middle] == len(printed) * plain
    # without a price on what it makes the corrected update is the plain step
    (free,) = (c for c in cells if c.name == "hu2020-corrected-clamped-gamma-50")
    assert free.measure(model, x, y)[0].value < plain[1].value


def test_subramanyams_attack_runs_towards_a_class(run):
    model, x, y = next(subramanyam.targeted(run)).given()
    near = model(x).topk(2).indices[:, 1]  # none is read as this one yet
    share, details = subramanyam.attacked("printed-clamped", model, x, near - 1, towards=1)
    assert share.value > 0 and details["success_by_images_inside_the_ball"] <= 100 * share.value
    _, away = subramanyam.attacked("printed-clamped", model, x, y, towards=1)
    plain, _ = subramanyam.attacked("printed-clamped", model, x, y)
    assert plain.value <= away["accuracy"] / 100  # a target costs strength


def test_tables_of_training_at_equal_work(run, files, monkeypatch):
    small = dro.Table("wong-mnist", "mnist", LinfBall(0.1), 0.01, 9, work=4, few=2)
    monkeypatch.setitem(dro.TABLES, 1, small)
    perform(run, dro.regniez(1, run))
    found = results.table("regniez-table-1", "training", "attack", folder=run.out)
    attacks = ("clean", "fgsm", "pgd-40", "pgd-100", "autoattack")
    assert set(found) == {(d, a) for d in ("chain", "pgd-40") for a in attacks}
    one, two = (found[d, "clean"].details for d in ("chain", "pgd-40"))
    assert one["back_propagations"] == pytest.approx(two["back_propagations"], rel=0.2)
    assert one["training_images"] == 60 and two["training_images"] == 60 * 4 // 41
    assert found["chain", "fgsm"].printed == 96.53 and found["pgd-40", "clean"].printed == 98.82
    assert found["chain", "autoattack"].samples == "MNIST test images 0 to 1"
    for defense in ("chain", "pgd-40"):  # the stronger attack leaves no more
        assert found[defense, "pgd-40"].value <= found[defense, "clean"].value
    before = files(run)
    perform(run, dro.regniez(1, run))
    assert before == files(run)


def test_whole_trainings_have_records_and_weights_of_their_own(run, monkeypatch):
    rows, trial = [], dro.trial
    monkeypatch.setattr(dro, "trial", lambda run, row: rows.append(row) or trial(run, row))
    cells = {c.name: c for c in dro.regniez(1, replace(run, device=torch.device("cuda")))}
    names = [f"{name}-whole-lr-{lr}" for name in ("chain", "pgd-40") for lr in (0.1, 0.01)]
    assert [results.name(row.keys) for row in rows] == names
    for row in rows:
        assert (row.epochs, row.images, row.few, row.batch) == (100, None, None, 100)
        assert row.lr == row.keys["lr"]
        assert not row.judges["autoattack"].keywords  # all of its attacks
    # the paper's numbers are of its own rates
    printed = [cells[f"{name}-autoattack"].printed for name in names]
    assert printed == [88.55, None, None, 89.10]


def test_epochs_that_a_call_names_are_of_all_images(run, monkeypatch):
    """On a CPU, too, under keys of their own; PGD and the chain both see each image so often."""
    rows = []
    monkeypatch.setattr(dro, "trial", lambda run, row: rows.append(row) or [])
    monkeypatch.setattr(got, "trial", lambda run, row: rows.append(row) or [])
    longer = replace(run, epochs=10)
    list(dro.regniez(1, longer))
    assert [results.name(row.keys) for row in rows] == [
        f"{name}-epochs-10-lr-{lr}" for name in ("chain", "pgd-40") for lr in (0.1, 0.01)
    ]
    assert {(row.epochs, row.images) for row in rows} == {(10, None)}
    rows.clear()
    list(got.table(4, longer))
    assert results.name(rows[0].keys) == "start-whole-epochs-10"
    assert [row.epochs for row in rows] == [5, *[10] * (len(rows) - 1)]
    assert all((row.images, row.few) == (None, None) for row in rows)
    assert rows[1].defense.inner.attack.keywords["steps"] == 40  # as printed
    rows.clear()
    list(got.betas(longer))
    assert [row.defense.beta for row in rows] == list(got.BETAS) * len(got.SEEDS)
    assert len({results.name(row.keys) for row in rows}) == len(rows)
    assert {row.start.what for row in rows} == {"got-cures"}  # trained once for both


def test_every_defense_gets_the_same_work(run, monkeypatch):
    rows = []
    monkeypatch.setattr(dro, "trial", lambda run, row: rows.append(row) or [])
    assert not list(dro.linf_training(run))
    assert {row.keys["training"] for row in rows} == set(dro.DEFENSES)
    x, y = (part[:8] for part in run.load("train").tensors())
    for row in rows[1:]:
        each = dro.DEFENSES[row.keys["training"]][1]
        model, (size, epochs) = models.build("wong-mnist", seed=0), (8, row.epochs)
        fit = training.fit(model, (x, y), row.defense, epochs=1, batch_size=8, progress=False)
        assert fit.history[0]["gradients"] == each * size
        assert each * epochs == pytest.approx(dro.GRADIENTS, rel=0.03)


def test_usual_attacks_on_networks_with_and_without_a_defense(run, small, monkeypatch):
    monkeypatch.setattr(subramanyam, "SHORT_IMAGES", 4)
    monkeypatch.setattr(subramanyam, "SHORT_EPOCHS", 1)
    monkeypatch.setattr(subramanyam, "FEW", 2)
    quick = {name: subramanyam.SETTINGS[name] for name in ("mi-fgsm", "cw", "deepfool")}
    for number, (data_set, names, _) in subramanyam.ROWS.items():
        names = ("hu2020", "standard") if number == 3 else names
        monkeypatch.setitem(subramanyam.ROWS, number, (data_set, names, quick))
    monkeypatch.setitem(runner.NETWORKS["mnist"], "standard", "standard.safetensors")
    monkeypatch.setattr(type(run), "network", runner.Run.network)
    models.save_weights(small[0], run.checkpoints / "standard.safetensors")
    logs = [perform(run, subramanyam.table(number, run)) for number in subramanyam.ROWS]
    tables = {
        number: results.table(
            f"subramanyam-table-{number}", "network", "attack", folder=run.out
        ) for number in subramanyam.ROWS
    }  # fmt: skip
    two = {attack: r for (_, attack), r in tables[2].items()}
    assert two["mi-fgsm"].value < two["clean"].value
    assert two["mi-fgsm"].printed == 3.16 and two["deepfool"].printed is None
    assert "eps=0.2" in two["mi-fgsm"].details["ball"]
    assert set(tables[3]) == {("standard", k) for k in ("clean", *quick)}  # no Hu here
    assert logs[1].missing == {"hu2020"}
    assert tables[4]["subramanyam", "cw"].printed == 10 and len(tables[4]) == 8
    assert tables[4]["standard", "clean"].samples.startswith("Fashion-MNIST test images")
    (trained,) = results.read("subramanyam-defense", run.out)
    assert trained.keys["data"] == "fashion-mnist" and trained.details["training_images"] == 4


def test_the_attack_of_subramanyam_takes_the_sign_step(run, monkeypatch):
    """FGSM with 0.02, in the table and in his training."""
    given = []

    def attack(model, x, y, ball, **options):
        given.append(options)
        return attacks.fgsm(model, x, y, ball)

    monkeypatch.setattr(subramanyam.attacks, "pgd", attack)
    perform(run, subramanyam.table_1(run))

    def fitted(model, data, defense, path, **options):
        given.append(defense.attack.keywords)
        return model, {}

    monkeypatch.setattr(subramanyam, "fitted", fitted)
    perform(run, subramanyam.defense(run))
    assert len(given) == len(subramanyam.VARIANTS) + 1
    for options in given:
        assert (options["rule"], options["step_size"]) == ("sign", 0.02)
    assert [options["steps"] for options in given] == [10] * 6 + [20]
    (record,) = results.read("subramanyam-defense", run.out)
    assert record.details["attack_rule"] == "sign"


def test_rows_of_got_are_what_their_names_say():
    for table in got.TABLES.values():
        for where in table.data:
            for name in table.rows:
                made = got.defense(name, where)
                inner = made.inner if name.startswith("got") else made
                kinds = {"trades": training.TRADES, "mart": training.MART}
                kind = next((k for word, k in kinds.items() if word in name), training.PGDAT)
                assert type(inner) is kind
                assert inner.ball == LinfBall(0.3 if where == "mnist" else 8 / 255)
                assert results.printed("got", data=where, training=name)
    weak, lm = (got.defense(f"got-pgd-{k}", "mnist", 7) for k in ("exact-weak", "lm"))
    assert (weak.beta, weak.term.kind, lm.beta, lm.term.match_labels) == (1.0, "exact", 10.0, True)
    assert weak.inner.attack.keywords["steps"] == 7
    middle = got.defense("got-trades-s-middle", "mnist")
    model, x = models.build("cw-mnist", seed=0), torch.rand(2, 1, 28, 28)
    assert middle.latent == got.MIDDLE
    assert isinstance(dict(model.named_modules())[got.MIDDLE], nn.MaxPool2d)
    assert torch.isfinite(middle.loss(model, x, torch.tensor([0, 1]), torch.arange(2)))
    l2 = got.defense("got-pgd-s-l2-l1", "mnist").term.cost
    assert (l2.latent, l2.prediction) == ("l2", "l1")


def test_tables_of_got_go_on_from_one_network(run, files, monkeypatch):
    plan = got.Plan(images=20, first=1, epochs=1, batch=10, steps=2, few=2)
    monkeypatch.setattr(got, "SHORT", plan)
    monkeypatch.setattr(got, "plan_of", lambda run, short=plan: plan)
    table = got.Table("wong-mnist", ("mnist",), ("pgd-at", "got-trades-s"))
    monkeypatch.setitem(got.TABLES, 1, table)
    starts = []
    train = trials.train
    monkeypatch.setattr(trials, "train", lambda run, row: starts.append(row) or train(run, row))
    perform(run, got.table(1, run))
    trained = [row.keys["training"] for row in starts]
    assert [name for name in trained if name != "start"] == ["pgd-at", "got-trades-s"]
    assert all(row.start is None or row.start.keys["training"] == "start" for row in starts)
    found = results.table("got-table-1", "training", "attack", folder=run.out)
    names = ("clean", "pgd-40", "autoattack", "square")
    assert set(found) == {(d, a) for d in ("start", *table.rows) for a in names}
    assert found["got-trades-s", "autoattack"].printed == 92.26
    assert found["pgd-at", "clean"].details["start"] == "start"
    assert found["start", "clean"].printed is None
    before = files(run)
    starts.clear()
    perform(run, got.table(1, run))
    assert not starts and before == files(run)
    perform(run, got.sweep(6, run))
    swept = results.table("got-table-6", "training", "protocol", "eps", folder=run.out)
    assert swept["pgd-at", "printed", 0.4].printed == 33.47
    for case in ("pgd-at", "got-trades-s"):
        flat = [swept[case, "printed", e].value for e in (0.4, 0.5, 0.6, 0.7)]
        assert len(set(flat)) == 1  # 40 steps of 0.01
        assert swept[case, "free", 0.7].value <= flat[0]
        assert swept[case, "free", 0.7].printed is None
    trained = len(starts)
    perform(run, got.sweep(6, run))  # all is recorded
    assert len(starts) == trained


def test_seeds_differ_in_weights_and_transfer_comes_from_another_network(run, small, monkeypatch):
    plan = got.Plan(images=20, first=1, epochs=1, batch=10, steps=2, few=2)
    monkeypatch.setattr(got, "plan_of", lambda run, short=None: plan)
    monkeypatch.setattr(got, "SEEDS", (0, 1))
    rows, others = [], []
    monkeypatch.setattr(got, "trial", lambda run, row: rows.append(row) or [])
    monkeypatch.setattr(trials, "train", lambda run, row: others.append(row) or (row, {}))
    assert not list(got.over_seeds(run)) and not others
    assert len(rows) == 2 * (1 + 12) and len({results.name(row.keys) for row in rows}) == len(rows)
    firsts = [row for row in rows if row.keys["training"] == "start"]
    assert [(row.seed, row.keys["seed"]) for row in firsts] == [(0, 0), (1, 1)]
    attacked, pgd, source_of_all = [], attacks.pgd, models.build("wong-mnist", seed=1)

    def counted(source, *given, **how):
        attacked.append(source)
        return pgd(source_of_all, *given, **how)

    monkeypatch.setattr(got.attacks, "pgd", counted)
    monkeypatch.setattr(trials, "train", lambda run, row: others.append(row) or (row.seed, {}))
    ball, how = LinfBall(0.3), {"steps": 40, "step_size": 0.01, "early_stop": False}
    moved = attacks.transfer(*small, ball, source=source_of_all, attack=pgd, **how)
    left = int((~moved.success).sum())
    for row in rows:
        share, _ = trials.judged(run, row.judges["transfer"], ball, small[0], {})
        assert share.count == left > 0
    assert [row.seed for row in others] == [100, 101]  # trained once each, where it is asked for
    assert attacked == [100, 101]  # and attacked once for all rows of a seed
    assert row.judges["transfer"].args[1]().x_adv.shape == small[1].shape


def test_shifted_images_keep_their_pixels():
    x = torch.zeros(1, 3, 16, 16)
    x[:, :, 8, 8] = 1
    shifted = trials.Shifted(x, torch.tensor([7]))
    torch.manual_seed(0)
    seen = {tuple(shifted[0][0][0].nonzero()[0].tolist()) for _ in range(60)}
    assert len(shifted) == 1 and shifted[0][1] == 7 and shifted[0][0].shape == (3, 16, 16)
    assert len(seen) > 20
