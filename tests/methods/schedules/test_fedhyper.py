"""FedHyper: its rates against the sheet's numbers and sums by hand, and the simulation against federated averaging."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.schedules import FedHyper
from thalweg.methods.schedules.fedhyper import Clients, bounded
from thalweg.runs import Run
from thalweg.sessions import train as session


def loop_of(theta, lr=0.1, batches=None, progress=0.5, momentum=0.0):
    theta = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
    return SimpleNamespace(
        parameters=[theta],
        optimizer=torch.optim.SGD([theta], lr=lr, momentum=momentum),
        data=SimpleNamespace(batch=batches or (lambda index: index)),
        clock=SimpleNamespace(progress=progress),
        metrics={},
        seed=3,
    )


def walk(schedule, loop, moves):
    """One round a move, of one client and one step that ends where theta - Delta says; (alpha, theta) after each."""
    told = []
    for move in moves:
        schedule.batch(loop, None)
        with torch.no_grad():
            loop.parameters[0] -= torch.tensor(move, dtype=torch.float64)
        schedule.step(loop)
        told.append((schedule.global_rate, loop.parameters[0].tolist()))
    return told


MOVES = [(1.0, 0.5), (0.8, 0.6), (-0.5, 0.2)]


def test_global_form_oracle():
    schedule, loop = FedHyper(warmup=0.0, form="global", clients=1, per_round=1, local_steps=1), loop_of([0.0, 0.0])
    schedule.setup(loop)
    told = walk(schedule, loop, MOVES)
    assert [alpha for alpha, _ in told] == pytest.approx([1.0, 2.1, 1.82])
    assert told[0][1] == pytest.approx([-1.0, -0.5])
    assert told[1][1] == pytest.approx([-2.68, -1.76])
    assert told[2][1] == pytest.approx([-1.77, -2.124])


def test_global_form_is_bounded():
    schedule, loop = FedHyper(warmup=0.0, form="global", clients=1, per_round=1, local_steps=1), loop_of([0.0, 0.0])
    schedule.setup(loop)
    assert [alpha for alpha, _ in walk(schedule, loop, [(9.0, 0.0)] * 2 + [(-9.0, 0.0)] * 2)] == pytest.approx(
        [1.0, 3.0, 1 / 3, 3.0]
    )


def test_server_form_sets_the_clients_rate_for_the_next_round():
    schedule, loop = FedHyper(warmup=0.0, form="server", clients=1, per_round=1, local_steps=1), loop_of([0.0, 0.0])
    schedule.setup(loop)
    peak, rates = 0.1, [1.0]
    for move in [(0.2, 0.1), (0.16, 0.12), (-0.1, 0.04), (9.0, 9.0), (9.0, 9.0)]:
        loop.optimizer.param_groups[0]["lr"] = peak * schedule.factor(loop.clock)
        walk(schedule, loop, [move])
        rates.append(schedule.factor(loop.clock))
    # In learning rate: 0.1, 0.1, 0.1 + 0.044, 0.144 - 0.0112, then the bounds.
    products = [0.2 * 0.16 + 0.1 * 0.12, -0.16 * 0.1 + 0.12 * 0.04]
    expected = [0.1, 0.1, 0.1 + products[0], 0.1 + sum(products)]
    assert [peak * rate for rate in rates[:4]] == pytest.approx(expected)
    assert rates[4:] == pytest.approx([0.1, 10.0])
    assert schedule.global_rate == 1.0


def test_client_form_is_the_sum_written_out():
    """Two rounds of one client with three steps on a quadratic, by hand."""
    h, peak = torch.tensor([1.0, 0.3], dtype=torch.float64), 0.2
    schedule = FedHyper(warmup=0.0, form="client", clients=1, per_round=1, local_steps=3)
    loop = loop_of([1.0, -2.0], lr=peak)
    schedule.setup(loop)
    theta, delta = torch.tensor([1.0, -2.0], dtype=torch.float64), None
    for _ in range(2):
        start, beta, before = theta.clone(), peak, None
        for _ in range(3):
            slope = h * theta
            if before is not None:
                beta += float(slope @ before) + (0.0 if delta is None else float(slope @ delta) / 3)
                beta = min(max(beta, peak / 10), peak * 10)
            theta, before = theta - beta * slope, slope
            schedule.batch(loop, None)
            loop.parameters[0].grad = h * loop.parameters[0].detach()
            schedule.raw_gradients(loop, None)
            rate = loop.optimizer.param_groups[0]["lr"] = peak * schedule.factor(loop.clock)
            loop.optimizer.step()
            schedule.step(loop)
            assert rate == pytest.approx(beta, rel=1e-12)
            assert loop.parameters[0].tolist() == pytest.approx(theta.tolist(), rel=1e-12)
        delta = start - theta
        assert schedule.factor(loop.clock) == 1.0  # the next turn starts from beta_0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_average_is_federated_averaging_by_hand(momentum):
    """Clients pull towards targets of their own; each turn starts from the global weights, without memory."""
    targets = torch.linspace(-3.0, 4.0, 6, dtype=torch.float64)
    schedule = FedHyper(warmup=0.0, form="average", clients=6, per_round=3, local_steps=4)
    loop = loop_of([10.0], batches=lambda index: targets[index % 6], momentum=momentum)
    schedule.setup(loop)
    theta = 10.0
    for number in range(5):
        ends = []
        for client in Clients(6, 3, 3).of_round(number):
            place, velocity = theta, 0.0
            for _ in range(4):
                velocity = momentum * velocity + (place - float(targets[client]))
                place -= 0.1 * velocity
            ends.append(place)
        theta = sum(ends) / 3
        for _ in range(12):
            target = schedule.batch(loop, None)
            loop.parameters[0].grad = (loop.parameters[0] - target).detach()
            schedule.raw_gradients(loop, None)
            loop.optimizer.step()
            schedule.step(loop)
        assert loop.parameters[0].item() == pytest.approx(theta, rel=1e-12)
        assert (schedule.global_rate, schedule.rate) == (1.0, 1.0)


def test_clients_are_sampled_without_return_and_share_no_batch():
    clients = Clients(20, 4, seed=1)
    rounds = [clients.of_round(number) for number in range(200)]
    assert all(len(set(drawn)) == 4 and set(drawn) <= set(range(20)) for drawn in rounds)
    assert rounds == [Clients(20, 4, seed=1).of_round(number) for number in range(200)]
    assert rounds != [Clients(20, 4, seed=2).of_round(number) for number in range(200)]
    assert min(Counter(client for drawn in rounds for client in drawn).values()) > 20
    indices = {client: [clients.batch_index(client, taken) for taken in range(50)] for client in range(20)}
    assert sorted(index for owned in indices.values() for index in owned) == list(range(1000))


def test_the_end_of_the_budget_ends_the_round():
    schedule = FedHyper(warmup=0.0, form="average", clients=3, per_round=3, local_steps=2)
    loop = loop_of([0.0])
    schedule.setup(loop)
    for step, end in enumerate([1.0, 2.0, 5.0]):
        loop.clock.progress = 1.0 if step == 2 else 0.5
        with torch.no_grad():
            loop.parameters[0].fill_(end)
        schedule.step(loop)
    # One client ended at 2, the second was on its way at 5.
    assert loop.parameters[0].item() == pytest.approx(3.5)


def test_nothing_is_adapted_in_the_warmup():
    schedule = FedHyper(warmup=0.6, form="global_client", clients=1, per_round=1, local_steps=1)
    loop = loop_of([0.0, 0.0])
    schedule.setup(loop)
    loop.parameters[0].grad = torch.ones(2, dtype=torch.float64)
    schedule.raw_gradients(loop, None)
    assert [alpha for alpha, _ in walk(schedule, loop, MOVES)] == [1.0] * 3
    assert schedule.rate == 1.0


def test_bounds():
    assert bounded(1.0, 0.5, 1.0, 3.0) == 1.5
    assert bounded(1.0, 5.0, 1.0, 3.0) == 3.0
    assert bounded(1.0, -5.0, 1.0, 4.0) == 0.25
    assert bounded(1.2, math.nan, 1.0, 3.0) == 1.2
    assert bounded(1.2, math.inf, 1.0, 3.0) == 1.2


@pytest.mark.parametrize("wrong", [{"form": "none"}, {"per_round": 21}, {"local_steps": 0}, {"bound_global": 0.5}])
def test_mistakes_are_named(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        FedHyper(**wrong)


# -- in the trainer -----------------------------------------------------------------------------------------------


def lines(run):
    keys = ("step", "loss", "lr", "client", "global_rate")
    return [tuple(line[key] for key in keys) for line in Run.open(run.folder).metrics("step")]


def test_a_stopped_run_goes_on_bit_for_bit(small, whole_and_resumed):
    options = "form=global_client,clients=5,per_round=2,local_steps=3,warmup=0.0"
    whole, resumed = whole_and_resumed(small(f"adamw+fedhyper:{options}", budget="17 steps"), 8)
    turns = [client for *_, client, _ in lines(whole)]
    assert all(turns[index : index + 3] == [turns[index]] * 3 for index in range(0, 15, 3))
    assert lines(resumed) == lines(whole)


def test_it_learns(small, tmp_path):
    arm = "adamw+fedhyper:form=average,clients=4,per_round=2,local_steps=4,warmup=0.0"
    run = session.train(
        small(arm, budget="40 steps", training__evaluate_every="8 steps"), tmp_path / "run", quiet=True, show=False
    )
    found = [line["held_out_bits_per_byte"] for line in Run.open(run.folder).metrics("evaluation")]
    assert found[-1] < found[0] - 0.2
