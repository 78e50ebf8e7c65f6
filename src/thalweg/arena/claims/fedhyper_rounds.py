"""Does FedHyper need fewer rounds than FedAvg, whatever rate one starts from?

Twenty clients share a logistic regression. Each has examples of its own, mostly of two of the five classes and shifted
by a draw of its own, so their minima differ. Four take part in a round, with five full-batch steps of gradient descent
each. Counted are the rounds until the loss over all clients' data is within a tenth of the lowest, for ten draws of
the data and five initial rates over two decades; a run that does not get there counts with the limit, be it FedAvg's
or FedHyper's.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims.finding import Finding

CLIENTS, PER_ROUND, LOCAL_STEPS, ROUNDS = 20, 4, 5, 60
DRAWS = 10
FIRST_DRAW = 100  # the criterion was fixed after draws 0 to 2 had been seen, so it is judged on others
EXAMPLES, FEATURES, CLASSES = 40, 20, 5
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
FORMS = ("average", "global", "server", "client", "global_client")
SPEEDUP = 1.1  # the lower end of what the paper says: 1.1 to 3 times as fast


def fedhyper_rounds(seed: int = 0) -> Finding:
    """Rounds to the target by form, draw and initial rate; holds if each form is 1.1 times as fast in the mean."""
    rounds: dict[str, list[int]] = {form: [] for form in FORMS}
    for draw in range(FIRST_DRAW + DRAWS * seed, FIRST_DRAW + DRAWS * (seed + 1)):
        features, labels = _clients(draw)
        target = 1.1 * _lowest(features, labels)
        for form in FORMS:
            rounds[form] += [_rounds(form, rate, features, labels, target, draw) for rate in RATES]
    faster = {form: _mean_ratio(rounds["average"], rounds[form]) for form in FORMS[1:]}
    numbers: dict[str, Any] = {"initial_rates": list(RATES), "draws": DRAWS, "limit": ROUNDS}
    numbers |= {f"rounds_{form}": [float(count) for count in counts] for form, counts in rounds.items()}
    numbers |= {f"times_as_fast_{form}": ratio for form, ratio in faster.items()}
    told = ", ".join(f"{form.replace('_', ' and ')} {ratio:.2f}" for form, ratio in faster.items())
    return Finding(
        numbers=numbers,
        holds=min(faster.values()) >= SPEEDUP,
        sentence=(
            f"Rounds to the target against FedAvg's, geometric mean over {DRAWS} draws and {len(RATES)} initial "
            f"rates from {RATES[0]:g} to {RATES[-1]:g}: times as fast with the form {told}."
        ),
    )


def _mean_ratio(slow: list[int], fast: list[int]) -> float:
    return math.exp(sum(math.log(one / other) for one, other in zip(slow, fast, strict=True)) / len(slow))


def _clients(seed: int) -> tuple[Tensor, Tensor]:
    """Features [clients, examples, features] and labels [clients, examples]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    own = torch.arange(CLIENTS)[:, None] + torch.randint(2, (CLIENTS, EXAMPLES), generator=generator)
    anyones = torch.randint(CLASSES, (CLIENTS, EXAMPLES), generator=generator)
    labels = torch.where(torch.rand(CLIENTS, EXAMPLES, generator=generator) < 0.8, own % CLASSES, anyones)
    shifts = 0.5 * torch.randn(CLIENTS, 1, FEATURES, generator=generator)
    noise = 1.5 * torch.randn(CLIENTS, EXAMPLES, FEATURES, generator=generator)
    return centres[labels] + shifts + noise, labels


def _loss(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    penalty = 0.005 * weights.square().sum()
    return functional.cross_entropy((features @ weights).flatten(0, -2), labels.flatten()) + penalty


def _lowest(features: Tensor, labels: Tensor) -> float:
    """The lowest loss over all data."""
    weights = torch.zeros(FEATURES, CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = _loss(weights, features, labels)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return float(_loss(weights, features, labels).detach())


def _rounds(form: str, rate: float, features: Tensor, labels: Tensor, target: float, seed: int) -> int:
    """Rounds until the global weights reach the target, or the limit."""
    weights = torch.zeros(FEATURES, CLASSES, requires_grad=True)
    schedule = catalog.resolve("fedhyper")(
        warmup=0.0, form=form, clients=CLIENTS, per_round=PER_ROUND, local_steps=LOCAL_STEPS
    )
    loop = SimpleNamespace(
        parameters=[weights],
        optimizer=torch.optim.SGD([weights], lr=rate),
        # Each client's batch is all it has, at every turn.
        data=SimpleNamespace(batch=lambda index: (features[index % CLIENTS], labels[index % CLIENTS])),
        clock=SimpleNamespace(progress=0.5),
        metrics={},
        seed=seed,
    )
    schedule.setup(loop)
    for number in range(1, ROUNDS + 1):
        for _ in range(PER_ROUND * LOCAL_STEPS):
            loss = _loss(weights, *schedule.batch(loop, None))
            (weights.grad,) = torch.autograd.grad(loss, [weights])
            schedule.raw_gradients(loop, None)
            loop.optimizer.param_groups[0]["lr"] = rate * schedule.factor(loop.clock)
            loop.optimizer.step()
            schedule.step(loop)
        with torch.no_grad():
            if float(_loss(weights, features, labels)) <= target:
                return number
    return ROUNDS
