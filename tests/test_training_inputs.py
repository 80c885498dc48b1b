"""What `fit` leaves as it was, what it refuses before it trains, and what it takes as a number."""

import numpy as np
import pytest
import torch
from test_training import OPTIONS, images, network, plain, same
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import wotlab
from wotlab import LinfBall
from wotlab.training import PGDAT, AdversarialTransport, Standard, fit
from wotlab.training._defenses import pgd_adversary
from wotlab.training._inputs import as_number

X, Y = images()
RUN = OPTIONS | {"epochs": 1}


def normed(*more):
    """A network with two BatchNorms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 2), *more,
        )  # fmt: skip


def modes(model):
    return [part.training for part in model.modules()]


def accuracy(model):
    """In eval mode, and a mode changed on the way."""
    model.train()
    return wotlab.evaluate.accuracy(model.eval(), (X, Y))


@pytest.mark.parametrize("frozen", [(), (0,), (0, 3)])
def test_frozen_parts_keep_their_mode_and_statistics(frozen):
    model, seen = normed(), []
    for k in frozen:
        model[k].eval()
    before, mode = [model[k].running_mean.clone() for k in (0, 3)], modes(model)

    class Look(Standard):
        def loss(self, *given):
            seen.append(modes(model))
            return super().loss(*given)

    options = RUN | {"validate": accuracy, "epochs": 2}
    fit(model, (X, Y), Look(), **options)
    assert modes(model) == mode and all(each == mode for each in seen) and len(seen) == 8
    for k, mean in zip((0, 3), before, strict=True):
        assert torch.equal(model[k].running_mean, mean) == (k in frozen)
        assert (int(model[k].num_batches_tracked) == 0) == (k in frozen)


def test_a_network_in_eval_mode_is_trained_as_a_whole():
    model = normed().eval()
    fit(model, (X, Y), **RUN)
    assert not any(modes(model)) and model[0].num_batches_tracked == 4


def test_modes_are_restored_after_an_error():
    model = normed()
    model[0].eval()
    mode = modes(model)

    def fail(m):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, (X, Y), validate=fail, **RUN)
    assert modes(model) == mode


@pytest.mark.parametrize("defense", [AdversarialTransport, PGDAT])
def test_attacks_change_no_statistics(defense):
    """The chain and the attack run in eval mode: one update a step, that of the loss."""
    model = normed()
    made = defense(
        LinfBall(0.1), **({"attack": pgd_adversary(3)} if defense is PGDAT else {"steps": 3})
    )
    if defense is AdversarialTransport:
        made.prepare(len(X))
    with torch.random.fork_rng():
        made.loss(model, X, Y, torch.arange(len(X)))
    assert model[0].num_batches_tracked == model[3].num_batches_tracked == 1


@pytest.mark.parametrize(
    "score",
    [
        lambda m: wotlab.evaluate.accuracy(m, (X, Y)),
        lambda m: np.float32(0.5),
        lambda m: np.array(0.5),
        lambda m: torch.tensor(0.5),
        lambda m: 1,
    ],
)
def test_validation_takes_any_number(score):
    done = fit(network(), (X, Y), validate=score, **RUN)
    assert done.best == 0 and 0 < done.history[0]["validation"] <= 1
    assert isinstance(done.history[0]["validation"], float)


@pytest.mark.parametrize("value", [None, "good", torch.ones(3), np.ones(2), [0.5]])
def test_validation_that_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="validate must return one number"):
        as_number(value)


def test_nan_is_never_the_best_epoch():
    for values, best in (([torch.nan, 0.5, 0.9], 2), ([0.5, torch.nan, 0.4], 0),
                         ([torch.nan] * 3, None)):  # fmt: skip
        scores, states = iter(values), []

        def validate(model):
            states.append({k: w.clone() for k, w in model.state_dict().items()})  # noqa: B023
            return next(scores)  # noqa: B023

        model = network()
        done = fit(model, (X, Y), validate=validate, **(RUN | {"epochs": 3}))
        assert done.best == best
        kept = states[2 if best is None else best]
        assert all(torch.equal(w, kept[k]) for k, w in model.state_dict().items())


def test_a_compiled_network_trains_and_is_counted(tmp_path):
    defense = PGDAT(LinfBall(0.1), attack=pgd_adversary(2))
    plain, compiled = (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    for model in (plain, torch.compile(compiled, backend="eager")):
        done = fit(model, (X, Y), defense, **RUN)
        assert done.history[0]["gradients"] == 3 * 60
    assert all(torch.allclose(a, b, atol=1e-5)
               for a, b in zip(plain.parameters(), compiled.parameters(), strict=True))  # fmt: skip


def test_no_grad_around_it_is_no_matter():
    defense = PGDAT(LinfBall(0.1), attack=pgd_adversary(1))
    one, two = network(), network()
    fit(one, (X, Y), defense, **RUN)
    with torch.no_grad():
        fit(two, (X, Y), defense, **RUN)
    assert same(one, two) and not same(one, network())


class Rows(Dataset):
    """Pairs from a list, with labels as they are."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(X)

    def __getitem__(self, k):
        return X[k], self.labels[k]


@pytest.mark.parametrize(
    "data",
    [
        (X, Y.int()),
        (X, Y.to(torch.uint8)),
        (X.numpy(), Y.numpy()),
        (X.double().numpy(), Y.int().numpy()),
        Rows(Y.tolist()),
        Rows(Y.numpy()),
    ],
)
def test_integers_and_arrays_of_all_kinds_are_one_data_set(data):
    one, two = plain(), plain()
    fit(one, (X, Y), **RUN)
    fit(two, data, **RUN)
    assert same(one, two)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)

    def __len__(self):
        return len(X)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (((255 * X).to(torch.uint8), Y), r"images.float\(\) / 255"),
        ((255 * X, Y), r"images must lie in \[0, 1\].* go from .*255"),
        (((X - 0.5) / 0.2, Y), r"images must lie in \[0, 1\]"),
        ((X * torch.nan, Y), "images must be finite"),
        ((X.flatten(1), Y), "images must have shape"),
        ((X, Y.float()), "labels must be class numbers"),
        ((X, Y[:, None]), r"labels must be class numbers.*\(16, 1\)"),
        ((X, Y > 0), "labels must be class numbers"),
        ((X, nn.functional.one_hot(Y)), "labels must be class numbers"),
        ((X, Y + 1), r"labels must lie in 0\.\.1, .* got 1\.\.2"),
        ((X, Y - 1), r"labels must lie in 0\.\.1"),
        (Rows([0.5] * 60), "labels must be class numbers"),
        (Rows(["cat"] * 60), "labels must be class numbers"),
        (Stream(), "data must be a map-style Dataset"),
        ((X.tolist(), Y.tolist()), "data must be a pair of tensors or arrays"),
        ((X, Y.tolist()), "a pair of tensors or arrays, or a Dataset; got Tensor and list"),
        ((X[0, 0, 0, 0], Y[0]), "data must be a pair of tensors or arrays"),
    ],
)
def test_data_that_cannot_be_trained_on_is_named(data, named):
    model = network()
    with pytest.raises(ValueError, match=named):
        fit(model, data, **RUN)
    assert same(model, network())  # not a step was taken


def frozen():
    return torch.jit.freeze(torch.jit.script(network().eval()))


def exported():
    return torch.export.export(network().eval(), (X[:4],)).module()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (frozen, "no weight that learns"),
        (lambda: network().requires_grad_(False), "no weight that learns"),
        (exported, "train and eval mode"),
        (lambda: lambda x: x, "model must be a torch.nn.Module"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3)), r"model must return .*; got \(8, 2, 2, 2\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.RNN(16, 2)), "model must return .*; got tuple"),
    ],
)
def test_models_that_cannot_be_trained_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        fit(make(), (X, Y), **RUN)


def test_inference_mode_is_named():
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        fit(network(), (X, Y), **RUN)


def test_a_last_minibatch_of_one_image_is_refused_where_it_cannot_be_normalised():
    one = (X[:33], Y[:33])
    with pytest.raises(ValueError, match="batch_size leaves the last minibatch"):
        fit(normed(), one, **RUN)
    model = normed()
    model[3].eval()  # with its statistics held, one image will do
    fit(model, one, **RUN)
    assert fit(network(), one, **RUN).epochs == 1


def test_images_a_little_beyond_one_are_rounding():
    assert fit(network(), (X / X.max() + 1e-6, Y), **RUN).epochs == 1
