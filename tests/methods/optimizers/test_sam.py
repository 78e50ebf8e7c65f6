"""SAM on quadratics that can be computed by hand, against two passes of torch's AdamW."""

from __future__ import annotations

import warnings

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import SAM, AdamW, Muon
from thalweg.runs import Run
from thalweg.sessions.train import train

BASES = {"adamw": AdamW, "muon": Muon}


class Looks:
    """A loss of some parameters as a closure that keeps where it was asked and what it answered."""

    def __init__(self, loss, parameters, optimizer):
        self.loss, self.parameters = loss, parameters
        self.places, self.losses, self.stepped = [], [], []
        if isinstance(optimizer, SAM):
            optimizer.inner.register_step_pre_hook(lambda *_: self.stepped.append([p.grad for p in parameters]))

    def __call__(self):
        for parameter in self.parameters:
            parameter.grad = None
        self.places.append([parameter.detach().clone() for parameter in self.parameters])
        loss = self.loss(*self.parameters)
        loss.backward()
        self.losses.append(loss.item())
        return loss


def quadratic(weight):
    """A = diag(1, 10)."""
    return 0.5 * (weight.new_tensor([1.0, 10.0]) * weight.square()).sum()


def look(loss, *starts, lr=0.0, **options):
    """One step from `starts`; gives what the closure saw."""
    parameters = [torch.nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in starts]
    optimizer = SAM(parameters, lr=lr, weight_decay=0.0, **options)
    looks = Looks(loss, parameters, optimizer)
    optimizer.step(looks)
    return looks


def test_worked_example():
    looks = look(quadratic, [3.0, 0.4], rho=0.05)
    first, second = (place[0] for place in looks.places)
    assert first.tolist() == [3.0, 0.4]
    assert (second - first).tolist() == pytest.approx([0.03, 0.04], abs=1e-12)
    assert looks.stepped[0][0].tolist() == pytest.approx([3.03, 4.40], abs=1e-12)
    # rho ||g|| = 0.25 to first order; exactly a little more.
    assert looks.losses[1] - looks.losses[0] == pytest.approx(0.25845, abs=1e-9)


def test_worked_example_of_the_adaptive_form():
    looks = look(quadratic, [3.0, 0.4], rho=0.05, adaptive=True)
    moved = looks.places[1][0] - looks.places[0][0]
    assert moved.tolist() == pytest.approx([0.147684, 0.003501], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_distance_is_rho_in_one_norm_whatever_the_scale_of_the_loss(scale):
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator).tolist() for shape in ((4, 3), (5,), (2, 2, 2))]
    looks = look(lambda *w: scale * sum(each.pow(4).sum() for each in w), *starts, rho=0.3)
    moved = torch.cat([(two - one).flatten() for one, two in zip(*looks.places, strict=True)])
    straight = torch.cat([4 * one.flatten() ** 3 for one in looks.places[0]])
    assert moved.norm().item() == pytest.approx(0.3, rel=1e-7)
    torch.testing.assert_close(moved, 0.3 * straight / straight.norm(), rtol=1e-7, atol=1e-12)


def test_a_gradient_of_zero_goes_nowhere():
    looks = look(lambda w: (0.0 * w).sum(), [1.0, 2.0], rho=0.3)
    assert torch.equal(*(place[0] for place in looks.places))


@pytest.mark.parametrize("base", BASES)
def test_distance_zero_and_linear_losses_are_the_base(base):
    """Where the gradient nearby is the gradient here, the base optimizer's walk comes out bit for bit."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((6, 4), (4,))]
    slope = [torch.randn_like(weight) for weight in start]
    linear = lambda *w: sum((a * b).sum() for a, b in zip(w, slope, strict=True))  # noqa: E731
    curved = lambda *w: sum(each.pow(4).sum() for each in w)  # noqa: E731
    for loss, options in ((linear, {"rho": 2.0}), (linear, {"rho": 2.0, "adaptive": True}), (curved, {"rho": 0.0})):
        walks = []
        for make in (BASES[base], lambda params, options=options, **o: SAM(params, base=base, **options, **o)):
            parameters = [torch.nn.Parameter(weight.clone()) for weight in start]
            optimizer = make(parameters, lr=0.05, weight_decay=0.1)
            looks = Looks(loss, parameters, optimizer)
            for _ in range(4):
                optimizer.step(looks)
            walks.append(parameters)
        assert all(torch.equal(one, two) for one, two in zip(*walks, strict=True))


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_two_passes_of_torchs_adamw(adaptive):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)) for _ in "ab")
    ours.double()
    theirs.double().load_state_dict(ours.state_dict())
    optimizer = SAM(ours.parameters(), lr=0.03, weight_decay=0.2, rho=0.2, adaptive=adaptive)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.03, weight_decay=0.2, betas=(0.9, 0.95))
    for step in range(6):
        inputs = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))

        def closure(model=ours, inputs=inputs):
            model.zero_grad()
            loss = (model(inputs) - inputs[:, :3].square()).square().mean()
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)
        closure(theirs)
        kept = [(weight.detach().clone(), weight.grad.clone()) for weight in theirs.parameters()]
        units = [(weight.abs() if adaptive else torch.ones_like(weight)) for weight, _ in kept]
        norm = sum((unit * slope).square().sum() for unit, (_, slope) in zip(units, kept, strict=True)).sqrt()
        with torch.no_grad():
            for weight, unit, (_, slope) in zip(theirs.parameters(), units, kept, strict=True):
                weight += 0.2 * unit.square() * slope / norm
        closure(theirs)
        with torch.no_grad():
            for weight, (before, _) in zip(theirs.parameters(), kept, strict=True):
                weight.copy_(before)
        plain.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_the_closure_is_asked_as_often_as_needed():
    parameter = torch.nn.Parameter(torch.tensor([3.0, 0.4]))
    optimizer = SAM([parameter], lr=0.1)
    looks = Looks(quadratic, [parameter], optimizer)
    assert optimizer.step(looks).item() == looks.losses[0]  # nothing was there: two looks, the loss at w
    assert len(looks.losses) == 2
    assert optimizer.step(looks).item() == looks.losses[2]  # nothing was left behind: two again
    assert len(looks.losses) == 4
    looks()
    assert optimizer.step(looks).item() == looks.losses[5]  # the first was there: one more, the loss at w + e
    assert len(looks.losses) == 6
    assert parameter.grad is None


def test_a_closure_that_does_not_clear_gradients():
    parameter = torch.nn.Parameter(torch.tensor([3.0, 0.4], dtype=torch.float64))
    optimizer = SAM([parameter], lr=0.0, rho=0.05)
    seen = []
    optimizer.inner.register_step_pre_hook(lambda *_: seen.append(parameter.grad.clone()))
    quadratic(parameter).backward()
    optimizer.step(lambda: quadratic(parameter).backward())
    assert seen[0].tolist() == pytest.approx([3.03, 4.40], abs=1e-12)


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
def test_weights_come_back_exactly(number):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(50, 20).to(number))
    start = parameter.detach().clone()
    optimizer = SAM([parameter], lr=0.0, weight_decay=0.0, rho=5.0)
    looks = Looks(lambda w: w.float().pow(4).sum(), [parameter], optimizer)
    optimizer.step(looks)
    assert not torch.equal(looks.places[1][0], start)
    assert torch.equal(parameter, start)


def test_without_a_closure_it_is_the_base_and_says_so_once():
    walks = []
    for make in (AdamW, SAM):
        parameter = torch.nn.Parameter(torch.tensor([3.0, 0.4]))
        optimizer = make([parameter], lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                optimizer.zero_grad()
                quadratic(parameter).backward()
                optimizer.step()
        assert [("plain steps of adamw" in str(each.message)) for each in caught] == ([True] if make is SAM else [])
        walks.append(parameter.detach())
    assert torch.equal(*walks)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base": "wsd"}, "wsd is no optimizer"),
        ({"base": "sam"}, "second look itself"),
        ({"base": "adamv"}, "no method 'adamv'"),
        ({"base": "drop_muon"}, "leaves out parts"),
        ({"rho": -1.0}, "rho"),
        ({"rho": float("nan")}, "rho"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        SAM([torch.nn.Parameter(torch.ones(2))], **options)


def test_groups_added_later_get_sams_options_and_the_bases():
    optimizer = SAM([torch.nn.Parameter(torch.ones(2, 2))], rho=0.2, base="muon")
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.5})
    assert [group["rho"] for group in optimizer.param_groups] == [0.2, 0.2]
    assert [group["momentum"] for group in optimizer.inner.param_groups] == [0.95, 0.95]
    assert optimizer.param_groups is optimizer.inner.param_groups
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.state is optimizer.inner.state


def test_hooks_and_the_rest_reach_the_base():
    optimizer = SAM([torch.nn.Parameter(torch.ones(2))])
    optimizer.inner.after_step = lambda trainer: trainer
    assert optimizer.after_step(7) == 7
    assert getattr(optimizer, "no_such_hook", None) is None


def test_in_a_run_the_second_look_is_taken_and_paid_for(small, tmp_path):
    """At distance 0 every step is AdamW's, and a budget in operations buys half of them."""
    told = {}
    for arm in ("adamw", "sam:rho=0.0"):
        recipe = small(f"{arm}+constant:warmup=0.0", budget="4e9 flops")
        run = Run.open(train(recipe, tmp_path / arm, quiet=True, show=False).folder)
        told[arm] = [line["loss"] for line in run.metrics("step")]
    half = len(told["adamw"]) // 2
    assert half >= 5
    assert told["sam:rho=0.0"] == told["adamw"][:half]
