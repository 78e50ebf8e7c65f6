"""How much of what pruning costs comes back when few parameters are retrained instead of all?

The linear layers of the small trained model lose 70%, and 80%, of their weights, the smallest ones of each. (At half,
which is where the source begins, this model loses 0.04 nats a token: there is nothing to bring back.) Then it is
retrained for the same number of steps on the same windows in the same order, each way with the best of the same rates:

    norms         the gains of its norms (it has no biases)
    mask_lora     these, and a low-rank change that is masked like the weight       scale_lora    the multiplied one
    lora_prune    these, and a dense low-rank change that is masked when merged     full          all parameters

Rates are chosen on one half of the held-out windows, losses reported on the other. With L(.) the loss in nats a token,
a way recovers (L(pruned) - L(way)) / (L(pruned) - L(full)). What the source says is taken to mean

    norms recover LARGE of it at the lower sparsity; mask_lora MOST of it at the higher one, and more than norms;
    lora_prune loses when it is merged, and is behind mask_lora in the end.

The rank is 4, not the source's 16: in matrices of width 128 sixteen would be a quarter of all weights, a share that the
source is nowhere near. Another seed draws other windows, orders and starts for the same trained model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.spread import spread
from thalweg.arena.claims.trained import CONTEXT, trained
from thalweg.budget import Budget
from thalweg.errors import TrainingError
from thalweg.models.compression import block_linears, check_kept
from thalweg.models.short_training import ShortTraining
from thalweg.models.text_loss import text_loss

STEPS, BATCH, RANK, HELD_OUT = 32, 2, 4, 96
RATES = (1e-4, 4e-4, 1.6e-3, 6.4e-3, 2.56e-2)
SPARSITIES = (0.7, 0.8)
WAYS = ("norms", "mask_lora", "scale_lora", "lora_prune", "full")
LARGE, MOST = 0.5, 0.8


def prune_retrain(
    seed: int = 0,
    steps: int = STEPS,
    rates: tuple[float, ...] = RATES,
    sparsities: tuple[float, ...] = SPARSITIES,
    held_out: int = HELD_OUT,
) -> Finding:
    """Losses by sparsity and way of retraining, after the best of the rates."""
    source = trained()
    windows, held = source.calibration(steps * BATCH, seed), spread(source.store.held_out, held_out, CONTEXT)
    dense = _loss(source.model(), held[1::2])
    found: dict[str, Any] = {"loss dense": round(dense, 4)}
    recovered: dict[str, list[float]] = {way: [] for way in WAYS}
    jumps, behind = [], []
    for sparsity in sparsities:
        trial = _Trial(source.model(), sparsity, windows, held, steps, seed)
        losses = {}
        for way in WAYS:
            best = trial.best(way, rates)
            losses[way] = best["loss"]
            found[f"loss {way} {sparsity:.0%}"] = round(best["loss"], 4)
            found[f"rate {way} {sparsity:.0%}"] = best["rate"]
            found[f"share {way}"] = best["share"]
            if way == "lora_prune":
                jumps.append(best["loss"] - best["before merging"])
        found[f"loss pruned {sparsity:.0%}"] = round(trial.pruned, 4)
        found[f"lora_prune loses at the merge {sparsity:.0%}"] = round(jumps[-1], 4)
        behind.append(losses["lora_prune"] - losses["mask_lora"])
        gain = trial.pruned - losses["full"]
        for way in WAYS:
            # Where all parameters bring nothing back there is no share of it.
            recovered[way].append((trial.pruned - losses[way]) / gain if gain > 0 else 0.0)
            found[f"recovered {way} {sparsity:.0%}"] = round(recovered[way][-1], 3)
    return Finding(found, _holds(recovered, jumps, behind), _sentence(sparsities, recovered, jumps))


def _holds(recovered: dict[str, list[float]], jumps: list[float], behind: list[float]) -> bool | None:
    """None where retraining all parameters brings nothing back."""
    if not all(recovered["full"]):
        return None
    norms, masked = recovered["norms"], recovered["mask_lora"]
    return norms[0] >= LARGE and masked[-1] >= MOST and masked[-1] > norms[-1] and min(*jumps, *behind) > 0


def _sentence(sparsities: tuple[float, ...], recovered: dict[str, list[float]], jumps: list[float]) -> str:
    shares = "; ".join(
        f"at {sparsity:.0%} sparsity norms alone bring back {recovered['norms'][index]:.0%} of what full retraining "
        f"does, mask_lora {recovered['mask_lora'][index]:.0%}, scale_lora {recovered['scale_lora'][index]:.0%}, "
        f"lora_prune {recovered['lora_prune'][index]:.0%}, which loses {jumps[index]:.3f} nats a token at its merge"
        for index, sparsity in enumerate(sparsities)
    )
    return f"{shares[0].upper()}{shares[1:]}."


class _Trial:
    """A model pruned to one sparsity, to be retrained from the same state again and again."""

    def __init__(self, model: Any, sparsity: float, windows: Tensor, held: Tensor, steps: int, seed: int) -> None:
        self.model, self.windows, self.held, self.steps, self.seed = model, windows, held, steps, seed
        for linear in block_linears(model).values():
            size = linear.weight.abs()
            linear.prune(size > size.flatten().kthvalue(round(sparsity * size.numel())).values)
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.pruned = _loss(model, held[1::2])

    def best(self, way: str, rates: tuple[float, ...]) -> dict[str, float]:
        """The result of the rate with the lowest loss on the windows for tuning."""
        best: dict[str, float] = {}
        for rate in rates:
            try:
                result = self.run(way, rate)
            except TrainingError:  # a rate at which it breaks is not the best one
                continue
            if not best or result["tuning"] < best["tuning"]:
                best = {**result, "loss": _loss(self.model, self.held[1::2])}
        return best

    def run(self, way: str, rate: float) -> dict[str, float]:
        """Retrain the pruned model; the model is left as it came out."""
        self.model.load_state_dict(self.state)
        if way == "full":
            self._full(rate)
            found = {"share": 1.0}
        else:
            found = self._perp(way, rate)
        check_kept(self.model)
        return {"rate": rate, **found, "tuning": _loss(self.model, self.held[::2])}

    def _perp(self, way: str, rate: float) -> dict[str, float]:
        step = catalog.resolve("perp")(
            f"{self.steps} steps",
            lora="none" if way == "norms" else way,
            rank=RANK,
            alpha=2.0 * RANK,
            peak_lr=rate,
            batch=BATCH,
            head=False,
            seed=self.seed,
        )
        before: list[float] = []

        def look(taken: int, total: int, loss: float) -> None:
            """The last of these looks sees the model that was trained, just before it is merged."""
            if taken == total and way == "lora_prune":
                before.append(_loss(self.model, self.held[1::2]))

        step.report = look
        share = step.compress(self.model, self.windows)["share"]
        return {"share": round(share, 5), **({"before merging": before[0]} if before else {})}

    def _full(self, rate: float) -> None:
        """All parameters, embeddings too; what is pruned has no gradient."""
        hooks = [
            linear.module.get_parameter("weight").register_hook(_masked(linear.fixed.mask))
            for linear in block_linears(self.model).values()
        ]
        training = ShortTraining(Budget.parse(f"{self.steps} steps"), rate, BATCH, self.seed)
        try:
            training.run(
                list(self.model.parameters()),
                lambda rows: _mean_loss(self.model, self.windows[rows]),
                len(self.windows),
            )
        finally:
            for hook in hooks:
                hook.remove()


def _masked(mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    assert mask is not None, "the layer was pruned"
    return lambda gradient: gradient * mask


def _mean_loss(model: Any, windows: Tensor) -> Tensor:
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _loss(model: Any, windows: Tensor) -> float:
    """Nats a token; infinity where the model is broken."""
    loss = text_loss(model, windows)
    return loss if math.isfinite(loss) else math.inf
