"""Constant: warm up, then stay at the peak.

factor(p) = p / warmup while p < warmup, then 1. The trunk of warmup-stable-decay, and the baseline of every
schedule that claims to anneal well. Source: common practice.
"""

from __future__ import annotations

from thalweg.methods.schedules.base import Schedule


class Constant(Schedule):
    """Linear warm-up to the peak, then the peak."""

    @property
    def trunk_end(self) -> float:
        return 1.0

    def shape(self, progress: float) -> float:
        """Always 1."""
        return 1.0
