"""Shapes that nothing beats: least predicted loss for every latency on a machine, within its memory.

Loss comes from a surrogate (`roofline_codesign`), latency and memory from the roofline. One shape beats another if it
is no slower and no worse, and better in one of the two; memory is a limit and not a third goal.

Source: Hardware Co-Design Scaling Laws via Roofline Modelling for On-Device LLMs (Sun et al. 2026, arXiv:2602.10377).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.errors import UserError
from thalweg.laws.roofline import Architecture, Machine, Precision, Workload, latency, memory
from thalweg.laws.roofline_codesign import Surrogate


@dataclass(frozen=True)
class Candidate:
    """A shape with its predicted loss, seconds for the workload, and bytes of memory."""

    architecture: Architecture
    loss: float
    seconds: float
    bytes: float


def price(
    architectures: Sequence[Architecture],
    surrogate: Surrogate,
    machine: Machine,
    workload: Workload,
    precision: Precision | None = None,
) -> list[Candidate]:
    """Loss, latency and memory of every shape. Raises UserError for one that the surrogate does not cover."""
    held = precision or Precision()
    return [
        Candidate(one, surrogate.predict(one), latency(one, machine, workload, held), memory(one, workload, held))
        for one in architectures
    ]


def frontier(candidates: Sequence[Candidate], seconds: float = math.inf, bytes: float = math.inf) -> list[Candidate]:
    """Candidates within both limits that no other one beats in loss without being slower, quickest first."""
    feasible = [one for one in candidates if one.seconds <= seconds and one.bytes <= bytes]
    kept: list[Candidate] = []
    for one in sorted(feasible, key=lambda one: (one.seconds, one.loss)):
        if not kept or one.loss < kept[-1].loss:
            kept.append(one)
    return kept


def best(candidates: Sequence[Candidate], seconds: float = math.inf, bytes: float = math.inf) -> Candidate:
    """The candidate of least loss within both limits.

    Raises:
        UserError: none is within them.
    """
    kept = frontier(candidates, seconds, bytes)
    if not kept:
        raise UserError(
            f"None of {len(candidates)} shapes answers within {seconds:.3g} seconds and {bytes:.3g} bytes.",
            fix="Offer smaller shapes, or allow more.",
        )
    return kept[-1]
