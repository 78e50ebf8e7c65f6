"""FedHyper: hypergradients set the learning rates of federated training, on the server and on the clients.

Local SGD, simulated one client after the other: in round t some clients start from the global weights theta_t and take
K steps each on data of their own; the server averages how far they went, Delta_t = mean (theta_t - theta_client), and
steps theta_{t+1} = theta_t - alpha_t Delta_t. beta is the clients' rate, beta_0 the peak.

    global:  alpha_t = clip(alpha_{t-1} + Delta_t . Delta_{t-1}, 1 / gamma_alpha, gamma_alpha)       alpha_0 = 1
    server:  beta_t = clip(beta_{t-1} + Delta_{t-1} . Delta_{t-2}, beta_0 / gamma_beta, gamma_beta beta_0)
    client:  beta_k = clip(beta_{k-1} + g_k . g_{k-1} + g_k . Delta_{t-1} / K, the same bounds), k-th local step
    average: alpha = 1, beta = beta_0, which is FedAvg

The `factor` is beta / beta_0. A step of the trainer is a step of one client, so the budget pays for all of them. Which
clients take part is a function of (seed, round); client c of C owns the batches c, c + C, c + 2C, ... of the run's
data, and its optimizer starts a turn without memory. The end of the budget ends turn and round. Before the end of a
round the weights are those of a client.

It works in our trainer by its hooks, and in any loop that calls them with an object that has `parameters`, `optimizer`,
`clock`, `data.batch(index)`, `metrics` and `seed`; the loop is one of plain gradient descent that knows of no clients.

Source: "FedHyper: A Universal and Robust Learning Rate Scheduler for Federated Learning with Hypergradient Descent"
(2023, arXiv:2310.03156). The released code differs from these equations: it bounds alpha to [0.2, 5], multiplies beta
by at most 1.1 a step and works on displacements where gradients stand here. The products have units: where weights are
many or rates large the bounds hold at once, where updates are small nothing moves. A client's first step has no step
before it and leaves beta alone. Clients of this simulation answer always and weigh the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import RecipeError
from thalweg.methods.schedules.base import Schedule

FORMS = ("average", "global", "server", "client", "global_client")


def bounded(rate: float, change: float, initial: float, bound: float) -> float:
    """rate + change within [initial / bound, initial * bound]; a change that is not finite counts as none."""
    changed = rate + change if math.isfinite(change) else rate
    return min(max(changed, initial / bound), initial * bound)


def inner(one: list[Tensor], other: list[Tensor]) -> float:
    """The inner product of two lists of tensors, each taken as one vector."""
    return float(torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum())


class Clients:
    """The sampler of clients: who takes part in a round, and which batches are whose.

    Args:
        count: how many there are. per_round: how many take part in a round.
    """

    def __init__(self, count: int, per_round: int, seed: int) -> None:
        self.count, self.per_round, self.seed = count, per_round, seed

    def of_round(self, number: int) -> list[int]:
        """The clients of a round, in the order of their turns: a function of the seed and the round."""
        drawn = np.random.default_rng([self.seed, number]).choice(self.count, self.per_round, replace=False)
        return [int(client) for client in drawn]

    def batch_index(self, client: int, taken: int) -> int:
        """Which batch of the run's data is the next one of a client that has taken so many."""
        return taken * self.count + client


class FedHyper(Schedule):
    """Simulates local SGD and adapts its rates.

    Args:
        warmup: share of the budget over which the clients' rate rises; no rate is adapted in it.
        form: which rates are adapted: average (none), global, server, client, or global_client (both).
        clients: how many there are. per_round: how many take part in a round. local_steps: K, of a turn.
        bound_global: gamma_alpha. bound_local: gamma_beta.

    Raises:
        RecipeError: an option out of range.
    """

    def __init__(
        self,
        warmup: float = 0.05,
        form: str = "global",
        clients: int = 20,
        per_round: int = 4,
        local_steps: int = 5,
        bound_global: float = 3.0,
        bound_local: float = 10.0,
    ) -> None:
        super().__init__(warmup)
        self.form, self.local_steps = form, int(local_steps)
        self.bound_global, self.bound_local = float(bound_global), float(bound_local)
        checks = {
            f"form = {form!r}": form in FORMS,
            f"per_round = {per_round} of clients = {clients}": 1 <= per_round <= clients,
            f"local_steps = {local_steps}": local_steps >= 1,
            f"bound_global = {bound_global}, bound_local = {bound_local}": bound_global >= 1.0 and bound_local >= 1.0,
        }
        for said, good in checks.items():
            if not good:
                raise RecipeError(f"{said} is not possible", where="schedule fedhyper", fix="See its options' bounds.")
        self.clients = Clients(int(clients), int(per_round), 0)
        self.rate, self.server_rate, self.global_rate = 1.0, 1.0, 1.0
        self.round, self.turn, self.local_step = 0, 0, 0
        self.taken = [0] * int(clients)
        self._peak = 1.0
        # Lists of tensors by name: weights at the round's start, sum of displacements, Delta_{t-1}, g_{k-1}.
        self._held: dict[str, list[Tensor]] = {}

    def shape(self, progress: float) -> float:
        """The rate of the client whose turn it is."""
        return self.rate

    @property
    def client(self) -> int:
        """Whose turn it is."""
        return self.clients.of_round(self.round)[self.turn]

    # -- hooks ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """Note the seed and, at a run's beginning, the weights; after a resume, bring what is held to the device."""
        self._refuse_shards(trainer)
        self.clients.seed = trainer.seed
        self._held.setdefault("start", [p.detach().clone() for p in trainer.parameters])
        for name, tensors in self._held.items():
            self._held[name] = [value.to(p.device) for value, p in zip(tensors, trainer.parameters, strict=True)]

    def batch(self, trainer: Any, batch: Any) -> Any:
        """In place of the run's batch, the next one of the client whose turn it is."""
        client = self.client
        self.taken[client] += 1
        return trainer.data.batch(self.clients.batch_index(client, self.taken[client] - 1))

    @torch.no_grad()
    def raw_gradients(self, trainer: Any, batch: Any) -> None:
        """The client form: adapt the rate of this step."""
        if "client" not in self.form:
            return
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.parameters]
        before = self._held.get("gradient")
        if before is not None and trainer.clock.progress >= self.warmup:
            change = inner(gradient, before)
            if "delta" in self._held:
                change += inner(gradient, self._held["delta"]) / self.local_steps
            self.rate = bounded(self.rate, change / self._peak, 1.0, self.bound_local)
        self._held["gradient"] = gradient

    def step(self, trainer: Any) -> None:
        """After a local step: perhaps the end of a client's turn, and of the round."""
        group = trainer.optimizer.param_groups[0]
        self._peak = group["lr"] / group.get("lr_scale", 1.0) / self.factor(trainer.clock)
        trainer.metrics |= {"client": self.client, "local_lr": self.rate * self._peak, "global_rate": self.global_rate}
        self.skipped(trainer)

    @torch.no_grad()
    def skipped(self, trainer: Any) -> None:
        """A local step that was not taken is one of the client's all the same."""
        self.local_step += 1
        over = trainer.clock.progress >= 1.0
        if self.local_step < self.local_steps and not over:
            return
        self._end_turn(trainer)
        if self.turn == self.clients.per_round or over:
            self._end_round(trainer)

    def _end_turn(self, trainer: Any) -> None:
        moved = [start - p for start, p in zip(self._held["start"], trainer.parameters, strict=True)]
        summed = self._held.get("sum")
        self._held["sum"] = moved if summed is None else [a + b for a, b in zip(summed, moved, strict=True)]
        self._held.pop("gradient", None)
        _put(trainer.parameters, self._held["start"])
        trainer.optimizer.state.clear()
        self.turn, self.local_step, self.rate = self.turn + 1, 0, self.server_rate

    def _end_round(self, trainer: Any) -> None:
        """The server's step."""
        delta = [total / self.turn for total in self._held.pop("sum")]
        if "delta" in self._held and trainer.clock.progress >= self.warmup:
            product = inner(delta, self._held["delta"])
            if "global" in self.form:
                self.global_rate = bounded(self.global_rate, product, 1.0, self.bound_global)
            if self.form == "server":
                self.server_rate = bounded(self.server_rate, product / self._peak, 1.0, self.bound_local)
        moved = [start - self.global_rate * d for start, d in zip(self._held["start"], delta, strict=True)]
        _put(trainer.parameters, moved)
        self._held |= {"start": moved, "delta": delta}
        self.round, self.turn, self.rate = self.round + 1, 0, self.server_rate

    def state_dict(self) -> dict[str, Any]:
        """Rates, whose turn it is, and the tensors that a round needs."""
        names = ("rate", "server_rate", "global_rate", "round", "turn", "local_step")
        state = {name: getattr(self, name) for name in names}
        return {**state, "taken": list(self.taken), "peak": self._peak, "held": dict(self._held)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        plain = dict(state)
        self._peak, self.taken = plain.pop("peak"), list(plain.pop("taken"))
        self._held = dict(plain.pop("held"))
        for name, value in plain.items():
            setattr(self, name, value)


def _put(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
