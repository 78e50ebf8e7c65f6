"""What do one-shot pruners cost a trained model, and in what order?

The small trained model is pruned in one pass, without training again, and its loss on held-out text is measured. A
method that looks at text is given 64 windows of the training text, drawn several times to know the noise of the draw.

    half_goes_free        half of the weights of smallest magnitude, against half of them at random
    inputs_matter         by magnitude and input norm (Wanda) against magnitude, 60% pruned; also where a few features
                          of the residual stream are made large, and the weights that read them small by as much
    the_rest_makes_up     with correction of what is kept (SparseGPT) against Wanda, 60% pruned, and 2 of every 4 kept
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.trained import Trained, trained
from thalweg.models.compression import block_linears

WINDOWS, DRAWS = 64, 3
FREE = 0.01  # more loss, as a share of it, that counts as none
MOST = 0.6  # sparsity at which orders are looked at
PLANTED, FACTOR = 8, 16.0  # features, and how much larger they are made


def half_goes_free(seed: int = 0, given: Trained | None = None) -> Finding:
    """Loss without half of the weights."""
    source = given or trained()
    dense = source.evaluation(source.model()).loss
    losses = {f"{share:.0%}": _loss(source, "magnitude", sparsity=share) for share in (0.3, 0.5, 0.7)}
    everywhere = _loss(source, "magnitude", sparsity=0.5, scope="global")
    at_random = _at_random(source, 0.5, seed)
    half = losses["50%"] / dense - 1.0
    return Finding(
        numbers={
            "loss unpruned": round(dense, 4),
            **{f"loss, {share} pruned": round(loss, 4) for share, loss in losses.items()},
            "loss, 50% pruned with one threshold for all": round(everywhere, 4),
            "loss, 50% pruned at random": round(at_random, 4),
        },
        # A model that can lose any half tells nothing of which half is lost.
        holds=None if at_random <= dense * (1.0 + FREE) else half <= FREE,
        sentence=(
            f"Half of the weights gone by magnitude costs {half:+.2%} of the held-out loss, at random "
            f"{at_random / dense - 1.0:+.2%}; 30% costs {losses['30%'] / dense - 1.0:+.2%}, 70% "
            f"{losses['70%'] / dense - 1.0:+.2%}."
        ),
    )


def inputs_matter(seed: int = 0, given: Trained | None = None, draws: int = DRAWS) -> Finding:
    """Loss of Wanda against that of magnitude, and both with planted outliers."""
    source = given or trained()
    magnitude = _loss(source, "magnitude", sparsity=MOST)
    wanda = [_loss(source, "wanda", draw, sparsity=MOST) for draw in _draws(seed, draws)]
    planted = {
        name: _loss(source, name, _draws(seed, draws)[0], planted=seed, sparsity=MOST)
        for name in ("magnitude", "wanda")
    }
    mean, error = _mean(wanda)
    return Finding(
        numbers={
            "loss magnitude": round(magnitude, 4),
            "loss wanda": [round(loss, 4) for loss in wanda],
            "loss magnitude, outliers planted": round(planted["magnitude"], 4),
            "loss wanda, outliers planted": round(planted["wanda"], 4),
        },
        holds=mean + 2.0 * error < magnitude and planted["wanda"] < planted["magnitude"],
        sentence=(
            f"At {MOST:.0%} the held-out loss is {mean:.4f} by magnitude and input norm (standard error {error:.4f} "
            f"over draws of the text) and {magnitude:.4f} by magnitude alone; with {PLANTED} features made "
            f"{FACTOR:.0f} times as large, {planted['wanda']:.4f} and {planted['magnitude']:.4f}."
        ),
    )


def the_rest_makes_up(seed: int = 0, given: Trained | None = None, draws: int = DRAWS) -> Finding:
    """Loss of SparseGPT against that of Wanda."""
    source = given or trained()
    places = _draws(seed, draws)
    found = {name: [_loss(source, name, draw, sparsity=MOST) for draw in places] for name in ("sparsegpt", "wanda")}
    pattern = {name: _loss(source, name, places[0], pattern="2:4") for name in ("sparsegpt", "wanda")}
    gain, error = _mean([b - a for a, b in zip(found["sparsegpt"], found["wanda"], strict=True)])
    means = {name: statistics.fmean(losses) for name, losses in found.items()}
    return Finding(
        numbers={
            **{f"loss {name}": [round(loss, 4) for loss in losses] for name, losses in found.items()},
            **{f"loss {name}, 2:4": round(loss, 4) for name, loss in pattern.items()},
            "wanda over sparsegpt": round(gain, 4),
            "wanda over sparsegpt, standard error": round(error, 4),
        },
        holds=gain > 2.0 * error and pattern["sparsegpt"] < pattern["wanda"],
        sentence=(
            f"At {MOST:.0%} the held-out loss is {means['sparsegpt']:.4f} with correction and {means['wanda']:.4f} "
            f"without (difference {gain:.4f}, standard error {error:.4f}); at 2:4 {pattern['sparsegpt']:.4f} and "
            f"{pattern['wanda']:.4f}."
        ),
    )


def _draws(seed: int, draws: int) -> list[int]:
    return [seed * draws + draw for draw in range(draws)]


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def _loss(source: Trained, name: str, draw: int = 0, planted: int | None = None, **options: Any) -> float:
    """Held-out loss of the model pruned with a method."""
    model = source.model()
    if planted is not None:
        _plant(model, planted)
    catalog.resolve(name)(**options).compress(model, source.calibration(WINDOWS, draw))
    return source.evaluation(model).loss


def _at_random(source: Trained, sparsity: float, seed: int) -> float:
    """Held-out loss with weights pruned at random, as many in each matrix."""
    model, generator = source.model(), torch.Generator().manual_seed(seed)
    for linear in block_linears(model).values():
        scores = torch.rand(linear.shape, generator=generator)
        linear.prune(scores > scores.flatten().kthvalue(int(sparsity * scores.numel())).values)
    return source.evaluation(model).loss


@torch.no_grad()
def _plant(model: Any, seed: int) -> None:
    """Make a few features larger where a norm puts them out, and the weights that read them smaller: the same model."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            features = torch.randperm(len(norm.weight), generator=generator)[:PLANTED]
            norm.weight[features] *= FACTOR
            for reader in readers:
                reader.weight[:, features] /= FACTOR
