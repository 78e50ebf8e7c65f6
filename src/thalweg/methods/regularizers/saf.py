"""SAF: hold the outputs for an example near those of an earlier visit to it.

    L_i + lambda tau^2 KL( p_i || softmax(f_w(x_i) / tau) )        p_i = softmax(past logits / tau), of E epochs ago

No second pass and no second model: what the model said of every example is kept until the example comes again. Fast
changes of the outputs are a sign of sharp regions, see `trajectory`. Where no text is seen twice SAF does nothing.

For a language model what is kept decides: all logits are vocabulary numbers a token. We keep the largest `top` of them,
as probabilities: the KL is that of the distribution over these tokens and "any other", which is never larger than the
whole KL, and equal to it where top is the vocabulary. Memory: 6 bytes a token of text, a kept probability and an epoch
looked back (float16 and an index of 32 bits), so 48 bytes a token of text for top 8 and one epoch; 1M tokens take
48 MB, in the host's memory and in every checkpoint. Examples are known by their tokens (a 64-bit hash of a window), so
any sampler will do that visits the same windows again. On a GPU the hashes are read on the host, once a pass.

Source: "Sharpness-Aware Training for Free" (2022, arXiv:2205.14083). Where we deviate: the above; temperature 1 instead
of 5, at which the 8 largest of 4096 probabilities hold 0.01 together (0.3 at 1; 0.2M parameters after 120 steps); one
epoch back instead of three, since language models see text a few times only; and the start is a share of the budget
instead of epoch 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import RecipeError
from thalweg.methods.regularizers.trajectory import Observer, Penalty, Trajectory, scaled


def largest_outputs(logits: Tensor, top: int, temperature: float) -> tuple[Tensor, Tensor]:
    """What is kept of logits [n, V]: indices [n, top] int32 and log-probabilities [n, top] float16."""
    if top > logits.shape[-1]:
        raise RecipeError(f"top = {top} is more than the vocabulary, {logits.shape[-1]}", where="saf")
    softened = scaled(logits, temperature)
    values, indices = softened.topk(top, dim=-1)
    return indices.int(), (values - softened.logsumexp(-1, keepdim=True)).half()


def partial_trajectory_loss(logits: Tensor, indices: Tensor, log_past: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(past || now) over the kept tokens and "any other": logits [n, V], both others [n, top] -> [n]."""
    now = scaled(logits, temperature).log_softmax(-1).gather(-1, indices.long())
    log_past = log_past.to(now.dtype)
    past = log_past.exp()
    divergence = (past * (log_past - now)).sum(-1)
    # Rounding may leave a sum a little above 1; what is nothing then adds nothing.
    tiny = torch.finfo(now.dtype).eps
    other_past = (1.0 - past.sum(-1)).clamp_min(0.0)
    other_now = (1.0 - now.exp().sum(-1)).clamp_min(tiny)
    divergence = divergence + torch.xlogy(other_past, other_past) - other_past * other_now.log()
    return temperature**2 * divergence


class OutputMemory:
    """What was said of every window on its last visits.

    Args:
        back: how many visits are kept, and how many visits back is looked.
    """

    def __init__(self, back: int) -> None:
        self.back = back
        self.rows: dict[int, int] = {}
        self.visits: list[int] = []
        self._kept: tuple[Tensor, Tensor] | None = None

    def recall(self, keys: Sequence[int], like: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
        """(indices, log-probabilities [B, T, top], known [B]) of `back` visits ago; None where nothing is known."""
        rows = [self.rows.get(key, -1) for key in keys]
        known = [row >= 0 and self.visits[row] >= self.back for row in rows]
        if self._kept is None or not any(known):
            return None
        found = torch.tensor([row if there else 0 for row, there in zip(rows, known, strict=True)])
        slots = torch.tensor([self.visits[row] % self.back if row >= 0 else 0 for row in rows])
        indices, values = (kept[found, slots].to(like, non_blocking=True) for kept in self._kept)
        return indices, values, torch.tensor(known, device=like)

    def keep(self, keys: Sequence[int], indices: Tensor, values: Tensor) -> None:
        """Keep the outputs [B, T, top] of a visit in place of those of `back` visits ago."""
        new = [key for key in dict.fromkeys(keys) if key not in self.rows]
        self.rows |= {key: len(self.rows) + place for place, key in enumerate(new)}
        self.visits += [0] * len(new)
        self._make_room(indices, values)
        assert self._kept is not None
        rows = [self.rows[key] for key in keys]
        slots = torch.tensor([self.visits[row] % self.back for row in rows])
        for kept, now in zip(self._kept, (indices, values), strict=True):
            kept[torch.tensor(rows), slots] = now.to(kept.device)
        for row in rows:
            self.visits[row] += 1

    def _make_room(self, *like: Tensor) -> None:
        needed = len(self.rows)
        held = 0 if self._kept is None else len(self._kept[0])
        if needed <= held:
            return
        size = max(needed, 2 * held)
        grown = [torch.zeros((size, self.back, *each.shape[1:]), dtype=each.dtype) for each in like]
        if self._kept is not None:
            for old, new in zip(self._kept, grown, strict=True):
                new[:held] = old
        self._kept = (grown[0], grown[1])

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors; nothing before the first visit."""
        if self._kept is None:
            return {}
        count = len(self.rows)
        return {
            "keys": torch.tensor(list(self.rows)),
            "visits": torch.tensor(self.visits),
            "indices": self._kept[0][:count].clone(),
            "log_probabilities": self._kept[1][:count].clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.rows = {key: row for row, key in enumerate(state["keys"].tolist())} if state else {}
        self.visits = state["visits"].tolist() if state else []
        self._kept = (state["indices"].clone(), state["log_probabilities"].clone()) if state else None


class SAF(Trajectory):
    """A callback that adds the penalty to whatever the objective is; writes the metric "saf" where there was one.

    Args:
        coefficient: lambda.
        temperature: tau.
        top: probabilities kept a token.
        back: visits looked back, E.
        start: share of the budget that is trained without the penalty; outputs are kept from the first step.

    Raises:
        RecipeError: an option that the card does not allow.
    """

    card = "saf"

    def __init__(
        self, coefficient: float = 0.3, temperature: float = 1.0, top: int = 8, back: int = 1, start: float = 0.05
    ) -> None:
        super().__init__(coefficient=coefficient, temperature=temperature, top=top, back=back, start=start)
        self.memory = OutputMemory(back)
        # What this step's passes said, by the keys of their windows: kept when the step has been taken.
        self._seen: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def look_back(self, input_ids: Tensor, fused: bool) -> tuple[Penalty | None, Observer | None]:
        """The penalty against what was said of these windows before, and the eye that reads what is said now."""
        if self.options.coefficient == 0.0:
            return None, None
        keys = tuple(window_keys(input_ids).tolist())
        recalled = self.memory.recall(keys, input_ids.device) if self.active else None
        # A pass without gradients is a look ahead, and one that comes again in a step is a second look.
        observer = self._observer(keys, input_ids) if torch.is_grad_enabled() and keys not in self._seen else None
        if recalled is None:
            return None, observer
        indices, values = (each.flatten(0, 1) for each in recalled[:2])
        known = recalled[2].repeat_interleave(input_ids.shape[1])

        def penalty(logits: Tensor, tokens: Tensor) -> Tensor:
            loss = partial_trajectory_loss(logits, indices[tokens], values[tokens], self.options.temperature)
            return self.options.coefficient * loss.where(known[tokens], 0.0)

        return penalty, observer

    def step(self, trainer: Any) -> None:
        """Keep what this step's passes said, on every rank that of all ranks."""
        super().step(trainer)
        for keys, (indices, values) in self._seen.items():
            if trainer.world_size > 1:
                gather = trainer.parallel.gather
                keys = gather(torch.tensor(keys, device=indices.device)).tolist()
                indices, values = gather(indices), gather(values)
            self.memory.keep(keys, indices, values)
        self._seen = {}

    def skipped(self, trainer: Any) -> None:
        """Forget what a step that was thrown away has said."""
        super().skipped(trainer)
        self._seen = {}

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.memory.load_state_dict(state)

    def _observer(self, keys: tuple[int, ...], input_ids: Tensor) -> Observer:
        shape = (*input_ids.shape, self.options.top)
        indices = torch.zeros(shape, dtype=torch.int32, device=input_ids.device)
        values = torch.zeros(shape, dtype=torch.float16, device=input_ids.device)
        self._seen[keys] = (indices, values)

        def observe(logits: Tensor, tokens: Tensor) -> None:
            found = largest_outputs(logits, self.options.top, self.options.temperature)
            indices.flatten(0, 1)[tokens], values.flatten(0, 1)[tokens] = found

        return observe


def window_keys(input_ids: Tensor) -> Tensor:
    """A 64-bit hash of every window: [B, T] -> [B]."""
    factors = torch.randint(2**62, (input_ids.shape[1],), generator=torch.Generator().manual_seed(0))
    # Odd, so that no token is lost; the sum wraps around.
    return ((input_ids + 1) * (2 * factors + 1).to(input_ids.device)).sum(-1)
