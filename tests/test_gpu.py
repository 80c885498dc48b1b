"""On a GPU everything gives what it gives on the CPU, and stays where its images are."""

import copy
from dataclasses import fields, is_dataclass
from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import wotlab
from wotlab import (
    GroundCost,
    InternalWassersteinBall,
    L2Ball,
    LinfBall,
    PatchCost,
    WassersteinBall,
    attacks,
    evaluate,
    gibbs,
    iwd,
    models,
    ot,
    projections,
    smoothing,
    training,
    transformations,
)
from wotlab._base.keeping import kept
from wotlab.attacks import _loop
from wotlab.attacks._graph import Recorded
from wotlab.attacks._growing import Closest, Growing, Search
from wotlab.attacks._objective import Objective

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LINF, MASS, PATCHES = LinfBall(0.1), WassersteinBall(0.3), InternalWassersteinBall(0.2)
ANY = InternalWassersteinBall(9.0)


def seeded() -> torch.Generator:
    """On the CPU, so that both devices get the same numbers."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def case(digits):
    """A network that reads digits, and some of them: in double precision, where no sign flips."""
    x, y = digits
    model = models.build("digits-small", seed=0)
    training.fit(model, (x, y), epochs=15, batch_size=10, lr=0.05, progress=False)
    return model.double().eval(), x[:8].double(), y[:8]


def tensors(made) -> list[Tensor]:
    """All numbers of a result."""
    if isinstance(made, Tensor):
        return [made]
    if isinstance(made, (tuple, list)):
        return [each for part in made for each in tensors(part)]
    if is_dataclass(made):
        return [t for f in fields(made) if f.repr for t in tensors(getattr(made, f.name))]
    return []


def same_on_both(work, case) -> None:
    model, x, y = case
    here = tensors(work(model, x, y))
    there = tensors(work(copy.deepcopy(model).cuda(), x.cuda(), y.cuda()))
    assert here and len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        assert b.is_cuda
        assert torch.allclose(a.double(), b.cpu().double(), atol=1e-6, equal_nan=True)


ATTACKS = {
    "fgsm": lambda m, x, y: attacks.fgsm(m, x, y, LINF),
    "pgd, linf": lambda m, x, y: attacks.pgd(
        m, x, y, LINF, random_start=True, restarts=2, generator=seeded()
    ),
    "pgd, l2": lambda m, x, y: attacks.pgd(m, x, y, L2Ball(0.5), loss="margin"),
    "pgd, mass": lambda m, x, y: attacks.pgd(m, x, y, MASS, steps=5),
    "pgd, patches": lambda m, x, y: attacks.pgd(m, x, y, PATCHES, steps=10),
    "transport": lambda m, x, y: attacks.transport(m, x, y, MASS, generator=seeded()),
    "mirror ascent": lambda m, x, y: attacks.mirror_ascent(m, x, y, MASS, steps=20),
    "frank-wolfe": lambda m, x, y: attacks.frank_wolfe(m, x, y, MASS, steps=20),
    "frank-wolfe, published": lambda m, x, y: attacks.frank_wolfe(
        m, x, y, MASS, steps=5, published=True
    ),
    # who draws at each step draws for those that are there, which a GPU lets go later
    "langevin": lambda m, x, y: attacks.langevin(
        m, x, y, LINF, early_stop=False, generator=seeded()
    ),
    "iwda": lambda m, x, y: attacks.iwda(
        m, x, y, ANY, steps=10, samples=2, early_stop=False, generator=seeded()
    ),
    "adef": lambda m, x, y: attacks.adef(m, x, y, ANY, steps=20),
    "eot": lambda m, x, y: attacks.eot(
        m, x, y, LINF, steps=5, early_stop=False, generator=seeded()
    ),
    "radius": lambda m, x, y: attacks.radius(m, x, y, generator=seeded()),
}


@pytest.mark.parametrize("work", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks(work, case):
    same_on_both(work, case)


@pytest.mark.parametrize("attack", [attacks.mirror_ascent, attacks.transport])
def test_attacks_in_single_precision_are_as_strong(attack, case):
    """There a step on plans is one kernel (tests/test_fused.py)."""
    model, x, y = case
    there = attack(copy.deepcopy(model).float().cuda(), x.float().cuda(), y.cuda(), MASS)
    assert wotlab.certify(x, there.x_adv.cpu().double(), MASS).inside.all()
    here = attack(model, x, y, MASS)
    assert abs(int(there.success.sum()) - int(here.success.sum())) <= 1


class Looking(nn.Module):
    """Its host looks at a number before it answers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, z):
        return self.model(z) if float(z.amax()) < 2 else self.model(0 * z)


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
def test_recorded_steps_are_the_steps(single, case, monkeypatch):
    """Of a network that can be recorded; another one is asked by its host as ever."""
    model, x, y = (copy.deepcopy(part).cuda() for part in case)
    model, x = (model.float(), x.float()) if single else (model, x)
    record, made = Recorded.record, []
    monkeypatch.setattr(Recorded, "record", lambda self: made.append(self) or record(self))
    # all stay to the end, so that both work on the same batch
    attack = partial(attacks.mirror_ascent, steps=60, early_stop=False)
    plain = attack(Looking(model), x, y, MASS)
    assert not made
    done = attack(model, x, y, MASS)
    assert len(made) == 1 and done.forward - plain.forward == len(x)  # asked once to see
    for one, other in zip(tensors(done), tensors(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 if single else 1e-9)


ATTACKED = {
    "pgd": lambda: training.PGDAT(LINF, attack=training.pgd_adversary(10)),
    "trades": lambda: training.TRADES(LINF),
    "wasserstein": lambda: training.WassersteinAT(WassersteinBall(0.1)),
}


@pytest.mark.parametrize("make", ATTACKED.values(), ids=ATTACKED.keys())
def test_a_training_records_its_attack_once(make, digits, monkeypatch):
    """And learns the same weights as one whose steps are told one by one."""
    record, made = Recorded.record, []
    monkeypatch.setattr(Recorded, "record", lambda self: made.append(self) or record(self))

    def trained(kind):
        model = kind(models.build("digits-small", seed=0).cuda().double())
        fit = training.fit(model, digits, make(), epochs=2, batch_size=10, lr=0.05)
        return list(model.parameters()), sum(entry["gradients"] for entry in fit.history)

    plain, gradients = trained(Looking)
    assert not made
    weights, more = trained(lambda model: model)
    assert len(made) == 1 and more == gradients + 20  # two minibatches were asked once to see
    for one, other in zip(weights, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_under_autocast_nothing_is_kept(digits):
    """Its weights are cast once for a minibatch; they would stay as they are in the next."""
    fabric = Fabric(accelerator="cuda", devices=1, precision="bf16-mixed")
    attack, seen = training.pgd_adversary(10), []
    defense = training.PGDAT(LINF, attack=lambda *given: seen.append(kept()) or attack(*given))
    model = models.build("digits-small", seed=0).cuda()
    fit = training.fit(model, digits, defense, epochs=1, batch_size=10, fabric=fabric)
    assert fit.epochs == 1 and all(each.able and not each.works for each in seen)


@pytest.mark.parametrize("ball", [MASS, L2Ball(9.0), LinfBall(0.9)], ids=["mass", "l2", "linf"])
def test_a_search_is_recorded_anew_when_many_have_left(ball, case, monkeypatch):
    """In one memory; with noise from the GPU's own numbers, recorded or not."""
    model, x, y = (copy.deepcopy(part).cuda() for part in case)
    sizes, record = [], Recorded.record
    note = lambda self: sizes.append(len(self.at.index)) or record(self)  # noqa: E731
    monkeypatch.setattr(Recorded, "record", note)
    monkeypatch.setattr(_loop, "FEW", 1)
    done = attacks.radius(model, x, y, ball)
    assert len(set(sizes)) > 1
    plain = attacks.radius(Looking(model), x, y, ball)
    assert done.eps.isfinite().all() and plain.eps.isfinite().all()
    assert (done.eps < 1.25 * plain.eps).all() and (plain.eps < 1.25 * done.eps).all()
    wrong = model(done.x_adv).argmax(1) != y
    assert wrong.all()


@pytest.mark.parametrize("ball", [MASS, L2Ball(0.5), LINF], ids=["mass", "l2", "linf"])
def test_between_two_looks_the_host_does_not_wait(ball, case, monkeypatch):
    """From the first step, behind a look, to the last one; in single precision, with the kernel."""
    model, x, y = copy.deepcopy(case[0]).float().cuda(), case[1].float().cuda(), case[2].cuda()
    inner, steps = Search(ball, 8, 1.0, 0.75, 0, 15, 5, None).rule(noise=False), 8

    class Watched(Growing):
        def step(self, z, gradient, loss, broken, t):
            done = super().step(z, gradient, loss, broken, t)
            torch.cuda.set_sync_debug_mode("error" if t < steps - 1 else "default")
            return done

    monkeypatch.setitem(_loop.LOOK, "cuda", 1000)
    stepper, objective = (
        Watched(inner, x.new_full((len(x),), 0.1)),
        Objective(model, y, False, "ce"),
    )
    try:
        with torch.no_grad():
            _loop.climb(stepper, objective, x, steps, kind=lambda x: Closest(x, 0.1, 15))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["autoattack", "stadv", "stadv, adam"])
def test_attacks_that_roundings_decide(name, case):
    """One draws on the device, the other begins at a kink: what they promise is compared."""
    model, x, y = (part.cuda() for part in case)
    attack, ball = {
        "autoattack": (attacks.library, LinfBall(0.2)),
        "stadv": (attacks.stadv, InternalWassersteinBall(1.0)),
        "stadv, adam": (partial(attacks.stadv, optimizer="adam"), InternalWassersteinBall(1.0)),
    }[name]
    done = attack(model, x, y, ball)
    assert done.x_adv.is_cuda and bool(ball.contains(x, done.x_adv)[done.success].all())
    wrong = model(done.x_adv).argmax(1) != y
    assert bool(done.success.any()) and bool(wrong[done.success].all())


MOVED = {  # of x and z, two batches of images
    "exact": lambda x, z: ot.exact(x, z, GroundCost()).primal,  # many potentials are optimal
    "W infinity": lambda x, z: ot.wasserstein_infinity(x, z),
    "sinkhorn": lambda x, z: ot.sinkhorn(x, z, GroundCost(), reg=0.1),
    "divergence": lambda x, z: ot.sinkhorn_divergence(x, z, GroundCost(), reg=0.1),
    "unbalanced": lambda x, z: ot.unbalanced_sinkhorn(x, z, GroundCost(), reg=0.1, tau=1.0),
    "constrained": lambda x, z: projections.constrained_sinkhorn(x, z, 0.1, GroundCost()),
    "projected": lambda x, z: projections.projected_sinkhorn(x, z, 0.1, GroundCost()),
    "dual": lambda x, z: projections.dual_projection(x, z, 0.1, GroundCost()),
    "unbalanced projection": lambda x, z: projections.unbalanced_sinkhorn(x, z, GroundCost()),
    "certificate": lambda x, z: wotlab.certify(x, z, WassersteinBall(1.0)),
    "iwd": iwd.exact,
    "iwd, l2": lambda x, z: iwd.exact(x, z, PatchCost(norm=2, stride=2)),
    "iwd, tiles": lambda x, z: iwd.tiled(x, z, tile=3),
    "iwd, entropic": lambda x, z: iwd.entropic(x, z, reg=0.1),
    "iwd, sliced": lambda x, z: iwd.sliced(x, z, generator=seeded()),
    "iwd, critic": lambda x, z: iwd.critic(x, z, steps=20, generator=seeded()),
    "iwd, ball": PATCHES.project,
    "iwd, ball of l2": InternalWassersteinBall(0.1, PatchCost(norm=2)).project,
    "warp": lambda x, z: transformations.warp(x, z.repeat(1, 2, 1, 1)),
    "transformations": lambda x, z: transformations.Transformations()(x, generator=seeded()),
    "translate": lambda x, z: transformations.translate(x, 0.2, generator=seeded()),
    "rotate": lambda x, z: transformations.rotate(x, 20, generator=seeded()),
    "blur": lambda x, z: transformations.blur(x, 1.0),
    "noise on flows": lambda x, z: smoothing.noisy(x, 0.01, generator=seeded()),
    "splitting noise": lambda x, z: smoothing.noisy_l1(x, 0.5, generator=seeded()),
    "langevin": lambda x, z: gibbs.sample(
        lambda w: ((w - z) ** 2).sum((1, 2, 3)),
        x,
        *LINF.walls(x),
        gibbs.Chain(),
        10,
        generator=seeded(),
    ),
}


@pytest.mark.parametrize("work", MOVED.values(), ids=MOVED.keys())
def test_transport_projections_and_patches(work, case):
    same_on_both(lambda model, x, y: work(x, x.flip(3)), case)


def test_gradients_of_the_distances(case):
    def slopes(model, x, y):
        z = x.roll(1, 3).requires_grad_()
        many = iwd.exact(x, z).sum() + iwd.entropic(x, z).sum()
        return torch.autograd.grad(many + wotlab.wasserstein_distance(x, z).sum(), z)[0]

    same_on_both(slopes, case)


DEFENSES = {
    "standard": training.Standard,
    "pgd": lambda: training.PGDAT(LINF),
    "trades": lambda: training.TRADES(LINF),
    "mart": lambda: training.MART(LINF),
    "awp": lambda: training.AWP(LINF),
    "lbgat": lambda: training.LBGAT(LINF, natural=models.build("digits-small", seed=1), alpha=1.0),
    "ates": lambda: training.ATES(LINF, gap=lambda epoch: epoch / 2),
    "noise on flows": lambda: training.NoiseAugmentation(partial(smoothing.noisy, sigma=0.01)),
    "splitting noise": lambda: training.NoiseAugmentation(partial(smoothing.noisy_l1, lam=0.5)),
    "fast": lambda: training.FastAT(LINF),
    "free": lambda: training.FreeAT(LINF, repeats=2),
    "wasserstein": lambda: training.WassersteinAT(WassersteinBall(0.1)),
    "iwdd": lambda: training.IWDD(InternalWassersteinBall(0.05)),
    "iwdd, generator": training.GenerativeIWDD,
    "chain": lambda: training.AdversarialTransport(LINF),
    "got": lambda: training.GOT.paper("GOT-PGD-S", "mnist"),
}


@pytest.mark.parametrize("make", DEFENSES.values(), ids=DEFENSES.keys())
def test_defenses_train_and_go_on_where_they_were_stopped(make, digits, tmp_path):
    """Two epochs at once, and one that is stored and followed by one more, end alike."""

    def trained(*epochs: int, **more) -> nn.Module:
        for until in epochs:
            model = models.build("digits-small", seed=0).cuda().double()  # no sign flips
            training.fit(
                model, digits, make(), epochs=until, batch_size=10, lr=0.05, progress=False, **more
            )
        return model

    whole, parts = trained(2), trained(1, 2, checkpoint=tmp_path / "half.checkpoint")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert a.is_cuda and torch.allclose(a, b, atol=1e-6)


def test_evaluation(case):
    model, x, y = (part.cuda() for part in copy.deepcopy(case))
    curve = evaluate.accuracy_curve(model, x, y, attacks.pgd, LINF, [0.0, 0.1, 0.3])
    assert curve.shares[0].value == evaluate.accuracy(model, (x, y)).value
    assert curve.shares[2].value < 1
    short = partial(attacks.pgd, steps=1, step_size=0.01)  # which moves a tenth of eps
    here, there = (
        [doubt.check for doubt in evaluate.sanity(*parts, short, LINF, generator=seeded())]
        for parts in (case, (model, x, y))
    )
    assert here == there and "short steps" in here


def test_weights_from_a_gpu_are_read_anywhere(tmp_path):
    model = models.build("digits-small", seed=0).cuda()
    models.save_weights(model, tmp_path / "weights.safetensors")
    other = models.build("digits-small", seed=1)
    models.load_weights(other, tmp_path / "weights.safetensors")
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert not b.is_cuda and torch.equal(a.cpu(), b)
