"""A sampler that begins further on: a continued run goes on in the data where the run before it stopped."""

from __future__ import annotations

from typing import Any


class Shifted:
    """`batch(step)` is that of `step + skip`; everything else is the sampler's own."""

    def __init__(self, sampler: Any, skip: int) -> None:
        self._sampler, self.skip = sampler, skip

    def batch(self, step: int) -> Any:
        """The batch of a step, as the sampler gives it `skip` steps later."""
        return self._sampler.batch(step + self.skip)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)
