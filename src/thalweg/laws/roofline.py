"""How long a decoder takes to answer on a machine, and how much memory: the roofline, operator by operator.

An operator is bound by arithmetic or by moving bytes, whichever takes longer, and may cost something just for being
started; a model takes the sum over its operators (the largest of sums would let one operator's bytes hide behind
another's arithmetic):

    seconds = sum over operators of max(flops / peak_flops, bytes / bandwidth) + launch
    linear m -> k on n tokens: 2 n m k flops, w m k + a n (m + k) bytes
    decoding at batch 1 is all bytes: (w N_active + 2 c l d_m S) / bandwidth

with w, a, c bytes of a weight, an activation and a cached number, l layers, d_m width of keys (and of values), S tokens
of context. Of E experts, K a token, n tokens together wake E (1 - (1 - K/E)^n) under uniform routing: decoding one
token reads K of them, reading a prompt nearly all.

What is left out: norms, rotations and samplers; the lookup in the input table; imbalance of experts; the re-reading of
the cache by attention over a prompt (each of its numbers is counted once written and once read, the causal half of the
products skipped).

Own derivation of the standard roofline, in the variables of Hardware Co-Design Scaling Laws via Roofline Modelling for
On-Device LLMs (Sun et al. 2026, arXiv:2602.10377), which reports model errors of 10 to 20%. `launch` is our addition:
for small models on a processor it is most of the time.

Units: seconds, FLOPs (a multiply-add is two), bytes, tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thalweg.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """A decoder with gated feed-forward layers, dense or of experts.

    Args:
        layers: blocks, l.
        width: of the residual stream and of all queries together, d.
        kv_width: of all keys of a token (and of all values), d_m.
        expert_width: inner width of an expert, or of the feed-forward layer of a dense model.
        vocab_size: rows of the output table.
        experts: in every layer, E.
        active: that a token passes through, K.
        tied: one table for input and output.
    """

    layers: int
    width: int
    kv_width: int
    expert_width: int
    vocab_size: int
    experts: int = 1
    active: int = 1
    tied: bool = False

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.kv_width, self.expert_width, self.vocab_size) < 1:
            raise UserError(f"Every size of an architecture must be at least 1: {self}.")
        if not 1 <= self.active <= self.experts:
            raise UserError(f"A token passes through 1 to {self.experts} experts, not {self.active}.")

    @property
    def expansion(self) -> float:
        """r: activated feed-forward width over the width."""
        return self.active * self.expert_width / self.width

    @property
    def activation_rate(self) -> float:
        """rho = K / E; 1 for a dense model."""
        return self.active / self.experts

    @property
    def routed(self) -> bool:
        """Whether there is anything to route."""
        return self.active < self.experts

    @property
    def stored(self) -> int:
        """All parameters: blocks, norms and tables."""
        tables = (1 if self.tied else 2) * self.vocab_size * self.width
        return self._blocks(self.experts) + tables + (2 * self.layers + 1) * self.width

    @property
    def activated(self) -> int:
        """Parameters that decoding one token reads: blocks with the active experts, and the output table."""
        return self._blocks(self.active) + self.vocab_size * self.width

    def _blocks(self, experts: int) -> int:
        attention = 2 * self.width * (self.width + self.kv_width)
        router = self.width * self.experts if self.routed else 0
        return self.layers * (attention + 3 * experts * self.width * self.expert_width + router)


@dataclass(frozen=True)
class Machine:
    """What a machine sustains; measured, not of a data sheet.

    Args:
        peak_flops: FLOP/s of large products (a machine profile's float32_flops or bfloat16_flops).
        bandwidth: bytes/s (its copy_bandwidth).
        launch: seconds that an operator costs whatever it does.
    """

    peak_flops: float
    bandwidth: float
    launch: float = 0.0

    def __post_init__(self) -> None:
        if not (self.peak_flops > 0 and self.bandwidth > 0 and self.launch >= 0):
            raise UserError(f"A machine's speeds must be positive: {self}.")


@dataclass(frozen=True)
class Workload:
    """What is asked: prompts of `prompt` tokens, `answer` tokens each, `batch` at once."""

    prompt: int
    answer: int
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or self.prompt < 1 or self.answer < 0:
            raise UserError(f"A workload needs a prompt and a batch: {self}.")


@dataclass(frozen=True)
class Precision:
    """Bytes of a weight, of a cached key or value, and of an activation."""

    weight: float = 2.0
    cache: float = 2.0
    activation: float = 2.0


@dataclass(frozen=True)
class Operator:
    """Arithmetic and traffic of one operator, and how often it runs."""

    name: str
    flops: float
    bytes: float
    count: int = 1

    def seconds(self, machine: Machine) -> float:
        """Of one run."""
        return max(self.flops / machine.peak_flops, self.bytes / machine.bandwidth) + machine.launch


def linear(name: str, tokens: float, inner: int, outer: int, precision: Precision, count: int = 1) -> Operator:
    """A product of `tokens` rows with a weight [inner, outer]."""
    moved = precision.weight * inner * outer + precision.activation * tokens * (inner + outer)
    return Operator(name, 2.0 * tokens * inner * outer, moved, count)


def distinct_experts(architecture: Architecture, tokens: float) -> float:
    """Experts of a layer that at least one of `tokens` tokens passes through, on average, routed uniformly."""
    if not architecture.routed:
        return float(architecture.experts)
    # In this form exact for one token, where 1 - (1 - x) would round.
    return -architecture.experts * math.expm1(tokens * math.log1p(-architecture.activation_rate))


def prefill(architecture: Architecture, workload: Workload, precision: Precision) -> list[Operator]:
    """Operators that read the prompts and give the first logits."""
    tokens = workload.batch * workload.prompt
    found = _products(architecture, tokens, precision)
    flops = 2.0 * workload.batch * workload.prompt**2 * architecture.width
    moved = tokens * (4 * precision.cache * architecture.kv_width + 2 * precision.activation * architecture.width)
    found.append(Operator("attention", flops, moved, architecture.layers))
    found.append(linear("head", workload.batch, architecture.width, architecture.vocab_size, precision))
    return found


def decode(architecture: Architecture, context: int, batch: int, precision: Precision) -> list[Operator]:
    """Operators that give one more token to each of `batch` texts of `context` tokens."""
    found = _products(architecture, batch, precision)
    found.append(_attention(architecture, context, batch, precision))
    found.append(linear("head", batch, architecture.width, architecture.vocab_size, precision))
    return found


def operators(architecture: Architecture, workload: Workload, precision: Precision) -> list[Operator]:
    """All operators of a workload, those that decoding repeats counted."""
    found = prefill(architecture, workload, precision)
    if workload.answer:
        same = decode(architecture, 1, workload.batch, precision)
        found += [
            Operator(one.name, one.flops, one.bytes, one.count * workload.answer)
            for one in same
            if one.name != "attention"
        ]
        contexts = range(workload.prompt + 1, workload.prompt + workload.answer + 1)
        found += [_attention(architecture, context, workload.batch, precision) for context in contexts]
    return found


def latency(architecture: Architecture, machine: Machine, workload: Workload, precision: Precision) -> float:
    """Seconds from prompt to last token."""
    return sum(one.count * one.seconds(machine) for one in operators(architecture, workload, precision))


def memory(architecture: Architecture, workload: Workload, precision: Precision) -> float:
    """Bytes: all weights (inactive experts too), the cache when full, and the activations of one block and the logits.

    Activations are a rough upper bound: stream and its normed copy, both feed-forward branches, for every token of the
    prompts at once.
    """
    cache = 2 * workload.batch * architecture.layers * architecture.kv_width * (workload.prompt + workload.answer)
    inner = architecture.active * architecture.expert_width
    alive = workload.batch * (workload.prompt * 2 * (architecture.width + inner) + architecture.vocab_size)
    return precision.weight * architecture.stored + precision.cache * cache + precision.activation * alive


def _products(architecture: Architecture, tokens: float, precision: Precision) -> list[Operator]:
    """The linear maps of all blocks."""
    layers, d, m = architecture.layers, architecture.width, architecture.kv_width
    inner = architecture.active * architecture.expert_width
    weights = distinct_experts(architecture, tokens) * d * architecture.expert_width
    branch = 2.0 * tokens * d * inner, precision.weight * weights + precision.activation * tokens * (d + inner)
    found = [
        linear("query", tokens, d, d, precision, layers),
        linear("key", tokens, d, m, precision, layers),
        linear("value", tokens, d, m, precision, layers),
        linear("output", tokens, d, d, precision, layers),
        Operator("gate", *branch, layers),
        Operator("up", *branch, layers),
        Operator("down", *branch, layers),
    ]
    return (
        [*found, linear("router", tokens, d, architecture.experts, precision, layers)] if architecture.routed else found
    )


def _attention(architecture: Architecture, context: int, batch: int, precision: Precision) -> Operator:
    flops = 4.0 * batch * context * architecture.width
    moved = 2.0 * precision.cache * batch * context * architecture.kv_width
    return Operator("attention", flops, moved, architecture.layers)
