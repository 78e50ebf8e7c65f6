"""Is cross-entropy without all logits the same cross-entropy?

The losses and both gradients (for the hidden states and for the head) of three ways to compute it are held against
plain logits of all tokens in float64: fused with gradients formed in the forward pass, fused with logits computed
again, and the chunked form that any objective can use. In float64 they may differ by the order of sums alone, in
float32 by float32's rounding. A tenth of the targets is ignored, and the upstream gradients differ from token to token
where the form allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.models.chunked import chunked_losses

TOKENS, WIDTH, VOCABULARY = 192, 48, 640
CHUNKS = (1, 50, TOKENS)
# What the order of a few hundred sums can do in each format, with room: its spacing at 1 is 2.2e-16 and 1.2e-7.
ALLOWED = {"float64": 1e-12, "float32": 1e-5}

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy_exact(seed: int = 0) -> Finding:
    """Largest relative error of losses and gradients of all forms and chunk sizes, a number format each.

    The error of a tensor is its largest deviation over the largest magnitude of the exact one.
    """
    numbers: dict[str, float] = {}
    for kind in (torch.float64, torch.float32):
        worst = {"losses": 0.0, "gradients": 0.0}
        for weighted, form in _forms():
            found = _error(form, weighted, kind, seed)
            worst = {key: max(value, found[key]) for key, value in worst.items()}
        name = str(kind).removeprefix("torch.")
        numbers |= {f"{name}_{key}": value for key, value in worst.items()}
    holds = all(value <= ALLOWED[key.split("_")[0]] for key, value in numbers.items())
    return Finding(
        numbers=numbers,
        holds=holds,
        sentence=(
            "Fused and chunked forms against full logits in float64: largest relative error "
            f"{numbers['float64_losses']:.1e} in losses and {numbers['float64_gradients']:.1e} in gradients "
            f"(in float32 {numbers['float32_losses']:.1e} and {numbers['float32_gradients']:.1e})."
        ),
    )


def _forms() -> Iterator[tuple[bool, Losses]]:
    """(whether it takes uneven upstream gradients, hidden states and head and targets to losses) of every form."""
    objective = catalog.resolve("cross_entropy")()
    for chunk in CHUNKS:
        yield False, lambda h, w, y, chunk=chunk: objective.from_hidden(h, w, y, chunk, False)  # type: ignore[misc]
        yield True, lambda h, w, y, chunk=chunk: objective.from_hidden(h, w, y, chunk, True)  # type: ignore[misc]
        yield True, lambda h, w, y, chunk=chunk: chunked_losses(h, lambda x: x @ w.T, objective, y, chunk)  # type: ignore[misc]


def _error(form: Losses, weighted: bool, kind: torch.dtype, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    # Logits with a spread of about 4 nats: neither a uniform softmax nor one that is 0 and 1.
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator) * 4.0 / WIDTH**0.5
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[torch.rand(TOKENS, generator=generator) < 0.1] = -100
    upstream = torch.rand(TOKENS, dtype=torch.float64, generator=generator) if weighted else torch.full((TOKENS,), 0.5)
    # Both sides start from the same numbers: what the narrow format cannot hold is no error of a form.
    hidden, weight = hidden.to(kind), weight.to(kind)
    exact = _computed(_full, hidden.double(), weight.double(), targets, upstream)
    found = _computed(form, hidden, weight, targets, upstream)
    errors = [float((one.double() - two).abs().max() / two.abs().max()) for one, two in zip(found, exact, strict=True)]
    return {"losses": errors[0], "gradients": max(errors[1:])}


def _full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(hidden @ weight.T, targets, ignore_index=-100, reduction="none")


def _computed(form: Losses, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Losses, gradient for the hidden states, gradient for the head."""
    hidden, weight = (part.detach().clone().requires_grad_() for part in (hidden, weight))
    losses = form(hidden, weight, targets)
    return losses.detach(), *torch.autograd.grad((losses * upstream.to(losses.dtype)).sum(), (hidden, weight))
