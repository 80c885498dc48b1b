"""Images that are done leave the batch at once, or a few steps later: nothing else changes."""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wotlab import GroundCost, L2Ball, LinfBall, WassersteinBall, attacks, training
from wotlab._base import keeping as keep
from wotlab._base.modes import counters, eval_mode
from wotlab.attacks import _graph, _loop
from wotlab.attacks._graph import Recorded, twin
from wotlab.attacks._growing import Bounded, Closest, Growing
from wotlab.attacks._loop import climb
from wotlab.attacks._mirror_ascent import Mirror
from wotlab.attacks._objective import Objective
from wotlab.attacks._result import Best
from wotlab.plans import PotentialPlans

pytestmark = pytest.mark.usefixtures("one_thread")
MASS = WassersteinBall(0.4, GroundCost(5))
DONE = ("x_adv", "success", "cost", "mass_error", "box_error", "steps", "misread")
ATTACKS = {
    "transport": (lambda *given: attacks.transport(*given, MASS, generator=drawn()), DONE),
    "mirror ascent": (lambda *given: attacks.mirror_ascent(*given, MASS, steps=30), DONE),
    "pgd": (
        lambda *given: attacks.pgd(
            *given, LinfBall(0.15), random_start=True, restarts=2, generator=drawn()
        ),
        DONE,
    ),
    "pgd, mass": (lambda *given: attacks.pgd(*given, MASS, steps=8), DONE),
    "frank-wolfe": (lambda *given: attacks.frank_wolfe(*given, MASS, steps=20), DONE),
    "radius": (
        lambda *given: attacks.radius(*given, generator=drawn()),
        ("eps", "x_adv", "steps"),
    ),
}


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def case(fitted, unseen):
    """A network and images in double precision; one image is misread from the start."""
    x, y = unseen
    y = y.clone()
    y[3] = (y[3] + 1) % 10
    return fitted.double().eval(), x.double(), y


@pytest.mark.parametrize(("attack", "names"), ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize("steps", [4, 16])
def test_what_is_done_stays_as_it_is_however_late_it_leaves(
    steps, attack, names, case, monkeypatch
):
    at_once = attack(*case)
    monkeypatch.setitem(_loop.LOOK, "cpu", steps)
    late = attack(*case)
    assert len(set(at_once.steps.tolist())) > 1
    for name in names:
        one, other = getattr(at_once, name), getattr(late, name)
        assert torch.equal(one.isinf(), other.isinf()), name
        assert torch.allclose(one.double(), other.double(), atol=1e-9), name
    if names is DONE:
        assert late.forward > at_once.forward and late.backward > at_once.backward


class Watch(TorchDispatchMode):
    """What makes a GPU's host wait is an error while it is on."""

    on = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = (
            part
            for each in args if name.startswith("index") and isinstance(each, list | tuple)
            for part in each if isinstance(part, torch.Tensor) and part.dtype == torch.bool
        )  # fmt: skip
        waits = name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")
        if self.on and (waits or any(True for _ in masks)):
            raise AssertionError(f"the host waits for {name}")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def switched(self, on: bool):
        self.on, before = on, self.on
        yield
        self.on = before


def growing(inner):
    return lambda n: Growing(inner, torch.full((n,), 0.3, dtype=torch.double))


STEPPERS = {
    "mirror": (lambda n: Mirror(MASS, 1.0, 0.75), Best),
    "growing": (growing(Mirror(MASS, 1.0, 0.75)), lambda x: Closest(x, 0.2, 15)),
    "growing, l2": (growing(Bounded(L2Ball(1.0), 0.75)), lambda x: Closest(x, 0.2, 15)),
    "growing, linf": (growing(Bounded(LinfBall(0.1), 0.75)), lambda x: Closest(x, 0.0, 15)),
}


@pytest.mark.parametrize(("make", "kind"), STEPPERS.values(), ids=STEPPERS.keys())
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_between_two_looks_no_host_waits(loss, make, kind, case, monkeypatch):
    """All but the step on plans, which is one kernel on a GPU (tests/test_fused.py)."""
    model, x, y = case
    watch, steps, stepper, taken = Watch(), 6, make(len(x)), []
    planned, stepped = PotentialPlans.step, type(stepper).step

    def plan(self, *given):
        with watch.switched(False):
            return planned(self, *given)

    def step(self, z, gradient, loss, broken, t):
        done = stepped(self, z, gradient, loss, broken, t)
        watch.on = t < steps - 1  # from the first step, behind a look, to the last
        taken.append(t)
        return done

    monkeypatch.setitem(_loop.LOOK, "cpu", 1000)
    monkeypatch.setattr(PotentialPlans, "step", plan)
    monkeypatch.setattr(type(stepper), "step", step)
    with watch, torch.no_grad():
        found = climb(stepper, Objective(model, y, False, loss), x, steps, kind=kind)
        watch.on = True
        with pytest.raises(AssertionError, match="the host waits"):
            x[found.broken]
        watch.on = False
    assert taken == list(range(steps)) and bool(found.broken.any())


class Repeated(Recorded):
    """On the CPU, where the work is done anew each time."""

    def record(self):
        return SimpleNamespace(replay=self.once)

    def __call__(self, at):
        self.graph.replay()  # in which the network's hooks count


@pytest.mark.parametrize("name", ["transport", "mirror ascent", "radius"])
def test_steps_that_are_recorded_are_the_steps(name, case, monkeypatch):
    """What they leave in place of the last state is the next one."""
    attack, names = ATTACKS[name]
    monkeypatch.setitem(_loop.LOOK, "cpu", 2)
    once, seen = attack(*case), []

    def recorded(work, at):
        seen.append(made := Repeated(work, at))
        return twin(made.at), made

    monkeypatch.setattr(_loop, "recorded", recorded)
    monkeypatch.setattr(_loop, "FEW", 1)
    monkeypatch.setattr(_loop, "WORTH", 2)
    again = attack(*case)
    sizes = {len(each.at.index) for each in seen}
    assert len(sizes) > (name == "radius")  # recorded anew where many have left
    for name in names:
        one, other = getattr(once, name).double(), getattr(again, name).double()
        assert torch.allclose(one, other, atol=1e-9), name


@pytest.fixture
def kept(monkeypatch):
    """What is recorded within, in the order of the recordings: as in a training on a GPU.

    What a graph would repeat is done anew, and its hooks count nothing.
    """
    made = []

    def record(self):
        def replay():
            counts = [(each, each.forward, each.backward) for each in self.passes]
            self.once()
            for passes, forward, backward in counts:
                passes.forward, passes.backward = forward, backward

        made.append(self)
        return SimpleNamespace(replay=replay)

    monkeypatch.setattr(Recorded, "record", record)
    monkeypatch.setattr(_graph, "GRAPHS", ("cpu",))
    monkeypatch.setattr(_graph, "alone", lambda at: counters(at.objective.model) is not None)
    with keep.keeping():
        yield made


MASSES = [WassersteinBall(eps, GroundCost(5)) for eps in (0.2, 0.4)]
FULL = {"early_stop": False}
IN_TRAINING = {  # an attack on a ball, and two balls
    "pgd": (partial(attacks.pgd, steps=5, **FULL), [LinfBall(0.1), LinfBall(0.2)]),
    "pgd, l2": (partial(attacks.pgd, steps=5, **FULL), [L2Ball(0.5), L2Ball(1.0)]),
    "pgd, kl": (
        partial(attacks.pgd, steps=5, loss="kl", random_start=True, **FULL),
        [LinfBall(0.1), LinfBall(0.2)],
    ),
    "mirror ascent": (partial(attacks.mirror_ascent, steps=4, **FULL), MASSES),
}


@pytest.mark.parametrize(("attack", "balls"), IN_TRAINING.values(), ids=IN_TRAINING.keys())
def test_a_training_records_once_for_all_minibatches_of_a_form(
    attack, balls, case, kept, monkeypatch
):
    """Whose weights and images change; another budget, size or place of a weight is another."""
    model, x, y = copy.deepcopy(case)
    parts = [slice(0, 4), slice(4, 8), slice(1, 5), slice(2, 6)]

    def train():
        for k, part in enumerate(parts):
            torch.manual_seed(k)  # of random starts
            yield attack(model, x[part], y[part], balls[0])
            with torch.no_grad():  # as an optimizer does
                for weight in model.parameters():
                    weight.mul_(1 + 0.1 * (k + 1))

    done = list(train())
    assert len(kept) == 1 and kept[0].uses == 2
    for ball in (balls[1], balls[0]):
        attack(model, x[:4], y[:4], ball)
    attack(model, x[:3], y[:3], balls[0])
    assert len(kept) == 1  # nothing is recorded of what came once
    attack(model, x[:3], y[:3], balls[0])
    assert len(kept) == 2
    swapped = next(each for each in model.modules() if isinstance(each, nn.Conv2d | nn.Linear))
    swapped.weight = nn.Parameter(swapped.weight.detach().clone())
    for _ in range(2):
        attack(model, x[:4], y[:4], balls[0])
    assert len(kept) == 3
    with swapped.register_forward_hook(lambda *given: None):
        uses = kept[-1].uses
        attack(model, x[:4], y[:4], balls[0])
        assert kept[-1].uses == uses  # the hook wants to be called

    model = copy.deepcopy(case[0])
    monkeypatch.setattr(_graph, "GRAPHS", ())
    for one, other, more in zip(done, train(), (0, 0, 1, 0), strict=True):
        for name in DONE:
            a, b = (getattr(result, name).double() for result in (one, other))
            assert torch.allclose(a, b, atol=1e-9), name
        # where what is kept is tried, one step is taken twice
        assert one.forward - other.forward == one.backward - other.backward == 4 * more


def test_what_draws_its_own_numbers_is_asked_at_each_step(case, kept):
    """By `random` or NumPy, for all that we know."""
    done = attacks.eot(*case, LinfBall(0.1), steps=4, early_stop=False, generator=drawn())
    assert bool(done.success.any()) and not kept


class Tempered(nn.Module):
    """A network that changes, in training, in what is none of its weights."""

    def __init__(self, model):
        super().__init__()
        self.model, self.warmth = model, 1.0

    def forward(self, x):
        return self.model(x) / self.warmth


@pytest.mark.parametrize("late", [False, True])
def test_steps_of_another_network_than_is_trained_are_not_repeated(late, case, kept, monkeypatch):
    """As a graph repeats what was a number of Python's when it was recorded; soon, or in time."""
    model, x, y = Tempered(copy.deepcopy(case[0])), *case[1:]
    attack = partial(attacks.mirror_ascent, steps=5, early_stop=False)
    for _ in range(9 if late else 2):
        attack(model, x, y, MASS)
    frozen = copy.deepcopy(model)  # which the recorded steps ask
    kept[0].at.objective = replace(kept[0].at.objective, model=frozen)
    model.warmth = 3.0
    with pytest.warns(UserWarning, match="not those of the network"):
        for _ in range(3):  # the tenth use is tried
            done = attack(model, x, y, MASS)
    known = keep.kept()
    assert not known.able and not known.works and len(kept) == 1
    monkeypatch.setattr(_graph, "GRAPHS", ())
    assert torch.allclose(done.x_adv, attack(model, x, y, MASS).x_adv, atol=1e-9)


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.mirror_ascent])
def test_nothing_is_kept_of_attacks_whose_images_leave(attack, case, kept):
    ball = LinfBall(0.1) if attack is attacks.pgd else MASS
    for _ in range(3):
        attack(*case, ball, steps=6)
    assert not kept
    for _ in range(3):
        attack(*case, ball, steps=6, early_stop=False)
    assert len(kept) == 1


def test_a_training_keeps_to_its_end_and_not_under_autocast(case, monkeypatch):
    monkeypatch.setattr(_graph, "GRAPHS", ("cpu",))
    x, y = (part[:4] for part in case[1:])
    seen, at = [], SimpleNamespace(index=torch.arange(4))

    class Watching:
        def loss(self, model, x, y, index):
            with torch.autocast("cpu"):
                assert _graph.stays(at, False) is None
            assert _graph.stays(at, True) is None
            seen.append(_graph.stays(at, False))
            return nn.functional.cross_entropy(model(x), y)

    with keep.keeping():
        outer = keep.kept()
        training.fit(copy.deepcopy(case[0]), (x, y), Watching(), epochs=2, batch_size=4)
        assert keep.kept() is outer
    assert keep.kept() is None
    assert len(seen) == 2 and seen[0] is seen[1] and seen[0] is not outer


def test_an_attack_goes_on_where_recording_fails(case, monkeypatch):
    def record(self):
        raise RuntimeError("operation not permitted")

    plain = attacks.transport(*case, MASS, generator=drawn())
    monkeypatch.setattr(_graph, "alone", lambda at: True)
    monkeypatch.setattr(Recorded, "record", record)
    with pytest.warns(UserWarning, match="not recorded for the GPU: operation not permitted"):
        done = attacks.transport(*case, MASS, generator=drawn())
    assert torch.equal(done.success, plain.success)
    assert torch.allclose(done.cost, plain.cost, atol=1e-9)


def test_a_network_is_recorded_where_nobody_but_us_watches_it(case):
    model = copy.deepcopy(case[0])
    with eval_mode(model) as passes:
        assert counters(model) == [passes]
        hook = model[0].register_forward_pre_hook(lambda part, given: None)
        assert counters(model) is None
        hook.remove()
    assert counters(model) == []


class NoAnswer(nn.Module):
    """Reads every image as 0, but once: then one logit of one image is NaN."""

    calls = 0

    def forward(self, z):
        self.calls += z.requires_grad
        logits = z.flatten(1)[:, :10] + 9 * (torch.arange(10) == 0)
        return (
            logits.index_put((torch.tensor([0]), torch.tensor([7])), torch.tensor(math.nan))
            if (self.calls == 5)
            else logits
        )


@pytest.mark.parametrize("steps", [1, 4, 1000])
def test_an_answer_of_nan_is_noticed_at_the_next_look_even_where_it_passes(
    steps, unseen, monkeypatch
):
    monkeypatch.setitem(_loop.LOOK, "cpu", steps)
    x, model = unseen[0], NoAnswer()
    with pytest.raises(ValueError, match="NaN on an attacked image"):
        attacks.pgd(model, x, torch.zeros(len(x), dtype=torch.long), LinfBall(0.01), steps=9)
    assert model.calls == {1: 5, 4: 6, 1000: 10}[steps]  # one of them before the climb
