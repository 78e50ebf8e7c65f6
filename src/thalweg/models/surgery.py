"""Parts that change what a model is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def installed(parts: Iterable[Any], model: Any) -> Any:
    """The model after every part with an `install(model) -> model` has worked on it.

    This comes before whatever looks at the model: its device, compilation, wrapping, the optimizer's groups. What sets
    rates, too (has `groups`), comes last, since it goes by the shape that the others leave.
    """
    for part in sorted(parts, key=sets_rates):
        if hasattr(part, "install"):
            model = part.install(model)
    return model


def sets_rates(part: Any) -> bool:
    """Whether a part is a parameterisation: it scales weights and rates, and leaves every operation as it is."""
    return hasattr(part, "groups")
