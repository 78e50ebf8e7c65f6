"""Cross-entropy straight from hidden states: the logits of all tokens never exist at once.

With hidden states h [N, d], head weight W [V, d] and targets y [N]:

    loss_i = logsumexp_j(h_i . W_j) - h_i . W_{y_i}
    dloss_i / dlogits_i = softmax(logits_i) - onehot(y_i)

The [N, V] logits are the largest tensor of a small language model. Here they are made `chunk` tokens at a time, in
one buffer that becomes the softmax and then the gradient in place. Two ways to come by the gradients:

- `weighted=False`: the caller promises that every loss will receive the same upstream gradient g, as it does from
  a mean or a sum. Then the gradients for h and W are g times a sum that the forward pass can already form, and no
  logits are computed twice. The promise is checked in the backward pass.
- `weighted=True`: any upstream gradient. The forward pass keeps one logsumexp a token and the backward pass
  computes the logits of each chunk again: one more matrix product.

Source: the forward-time gradient is the idea of "Liger Kernel: Efficient Triton Kernels for LLM Training" (2024,
arXiv:2410.10989); the chunked recomputation is common practice. Ours is plain PyTorch and gives unreduced losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thalweg.errors import TrainingError

IGNORED = -100


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024, weighted: bool = False
) -> Tensor:
    """Per-token cross-entropy of `hidden @ weight.T`, without holding more than `chunk` rows of logits.

    Args:
        hidden: [N, d]; logits are computed in its type, the rest in float32 (float64 for float64).
        weight: [V, d], the weight of an output head without bias.
        targets: [N], int64; -100 is ignored: loss 0, no gradient.
        chunk: tokens whose logits exist at one time.
        weighted: False promises one upstream gradient for all losses (a mean or a sum); True takes any.

    Returns:
        [N] losses in nats, float32 (float64 for float64 hidden states).

    Raises:
        TrainingError: shapes that do not fit, or a chunk below 1.
        RuntimeError: in the backward pass, if the promise of `weighted=False` is broken.
    """
    return with_normaliser(hidden, weight, targets, chunk, weighted)[0]


def with_normaliser(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, weighted: bool, z_coefficient: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy`, plus z_coefficient * logsumexp^2 on every loss that counts.

    Returns:
        [N] losses, and [N] the logsumexp of the logits, without gradient.
    """
    where = "linear_cross_entropy"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise TrainingError(
            f"hidden states {tuple(hidden.shape)} and head weight {tuple(weight.shape)} do not fit",
            where=where,
            fix="Give hidden states [tokens, width] and a weight [vocabulary, width].",
        )
    if targets.shape != hidden.shape[:1]:
        raise TrainingError(
            f"{tuple(targets.shape)} targets for {hidden.shape[0]} tokens",
            where=where,
            fix="Flatten the targets to one a token.",
        )
    if chunk < 1:
        raise TrainingError(f"chunk = {chunk} is below 1", where=where, fix="Try chunk=1024.")
    # A plain evaluation needs neither kind of gradient; the recomputing form does nothing beyond the losses then.
    form = _Recomputing if weighted or not torch.is_grad_enabled() else _Promised
    return form.apply(hidden, weight, targets, chunk, z_coefficient)


class _Chunks:
    """Logits of one chunk after another, in buffers that are allocated once."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> None:
        self.hidden, self.targets = hidden, targets
        self.weight = weight.to(hidden.dtype)
        self.chunk = max(min(chunk, hidden.shape[0]), 1)
        self.exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.product = hidden.new_empty(self.chunk, weight.shape[0])
        same = hidden.dtype == self.exact
        self.logits = self.product if same else torch.empty_like(self.product, dtype=self.exact)

    def slices(self) -> list[slice]:
        count = self.hidden.shape[0]
        return [slice(start, min(start + self.chunk, count)) for start in range(0, count, self.chunk)]

    def results(self) -> tuple[Tensor, Tensor]:
        """Room for losses and logsumexps, [N] each."""
        losses = self.hidden.new_zeros(self.hidden.shape[0], dtype=self.exact)
        return losses, torch.zeros_like(losses)

    def forward(self, rows: slice) -> Tensor:
        """The logits of these tokens, in the exact type; a view that the next call overwrites."""
        length = rows.stop - rows.start
        torch.mm(self.hidden[rows], self.weight.mT, out=self.product[:length])
        logits = self.logits[:length]
        return logits if self.logits is self.product else logits.copy_(self.product[:length])

    def target(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Which of these tokens count, and their targets with 0 in place of the ignored ones; both [n, 1]."""
        targets = self.targets[rows].unsqueeze(1)
        valid = targets != IGNORED
        return valid, targets.where(valid, 0)

    def losses(self, rows: slice, logits: Tensor, z_coefficient: float) -> tuple[Tensor, Tensor]:
        """Losses [n] and logsumexps [n, 1] of these tokens; the logits become their softmax in place."""
        valid, target = self.target(rows)
        chosen = logits.gather(1, target)
        total = _softmax_(logits)
        losses = total - chosen
        if z_coefficient:
            losses += z_coefficient * total.square()
        return losses.where(valid, 0.0).squeeze(1), total

    def error_(self, rows: slice, softmax: Tensor, total: Tensor, z_coefficient: float) -> Tensor:
        """Turn the softmax into the gradient of the losses for the logits, in place."""
        valid, target = self.target(rows)
        if z_coefficient:
            softmax.mul_(1.0 + 2.0 * z_coefficient * total)
        softmax.scatter_add_(1, target, torch.full_like(total, -1.0))
        return softmax.masked_fill_(~valid, 0.0)

    def backward(self, rows: slice, error: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None) -> None:
        """Add what the gradient for the logits gives to hidden states and weight; `error` is used up."""
        narrow = error if self.logits is self.product else self.product[: len(error)].copy_(error)
        if grad_hidden is not None:
            torch.mm(narrow, self.weight, out=grad_hidden[rows])
        if grad_weight is not None:
            if narrow.dtype == grad_weight.dtype:
                grad_weight.addmm_(narrow.mT, self.hidden[rows])
            else:
                grad_weight.add_(narrow.mT @ self.hidden[rows])


def _softmax_(logits: Tensor) -> Tensor:
    """Turn logits [n, V] into their softmax in place and give back their logsumexp [n, 1]."""
    top = logits.amax(-1, keepdim=True)
    if logits.device.type == "cpu":
        # One fused kernel, row by row in cache; reading the normaliser off the largest probability (at least 1/V,
        # so never rounded to 0) is cheaper than a pass for logsumexp.
        torch.softmax(logits, -1, out=logits)
        return top - logits.amax(-1, keepdim=True).log()
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    logits.div_(total)
    return top + total.log()


class _Promised(torch.autograd.Function):
    """Gradients formed in the forward pass, scaled by the one upstream gradient in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, z_coefficient: float
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            work = _Chunks(hidden, weight, targets, chunk)
            losses, normaliser = work.results()
            needs_hidden, needs_weight = ctx.needs_input_grad[:2]
            grad_hidden = torch.empty_like(hidden) if needs_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=work.exact) if needs_weight else None
            for rows in work.slices():
                logits = work.forward(rows)
                losses[rows], total = work.losses(rows, logits, z_coefficient)
                normaliser[rows] = total.squeeze(1)
                if needs_hidden or needs_weight:
                    error = work.error_(rows, logits, total, z_coefficient)
                    work.backward(rows, error, grad_hidden, grad_weight)
        ctx.save_for_backward(targets, grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(normaliser)
        return losses, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        targets, grad_hidden, grad_weight = ctx.saved_tensors
        scale = _the_one(upstream, targets != IGNORED) if targets.numel() else upstream.new_zeros(())
        for_hidden = None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype)
        for_weight = None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype)
        return for_hidden, for_weight, None, None, None


def _the_one(upstream: Tensor, valid: Tensor) -> Tensor:
    """The upstream gradient that all valid losses share; fails, without waiting for the device, if they do not."""
    scale = upstream[valid.to(torch.uint8).argmax()]
    torch._assert_async(
        ((upstream == scale) | ~valid | upstream.isnan()).all(),
        "linear_cross_entropy(weighted=False) was promised one upstream gradient for all losses, but they differ: "
        "take the mean or the sum of the losses, or say weighted=True",
    )
    return scale


class _Recomputing(torch.autograd.Function):
    """Logits of each chunk computed again in the backward pass, for any upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, z_coefficient: float
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            work = _Chunks(hidden, weight, targets, chunk)
            losses, normaliser = work.results()
            for rows in work.slices():
                losses[rows], total = work.losses(rows, work.forward(rows), z_coefficient)
                normaliser[rows] = total.squeeze(1)
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.chunk, ctx.z_coefficient = chunk, z_coefficient
        ctx.mark_non_differentiable(normaliser)
        return losses, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            work = _Chunks(hidden, weight, targets, ctx.chunk)
            grad_hidden = torch.empty_like(hidden) if needs_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=work.exact) if needs_weight else None
            for rows in work.slices():
                total = normaliser[rows].unsqueeze(1)
                softmax = work.forward(rows).sub_(total).exp_()
                error = work.error_(rows, softmax, total, ctx.z_coefficient)
                work.backward(rows, error.mul_(upstream[rows].unsqueeze(1)), grad_hidden, grad_weight)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None
