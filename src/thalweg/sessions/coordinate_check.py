"""The coordinate check of muP: do activations move by the same amount at every width?

A few steps of training are taken at several widths with one rate, and after each the mean size of the change of every
activation since the start is measured on fixed text. Under muP it does not depend on the width; under the standard
parameterisation it grows, which is why its best rate falls. The growth is the slope of log change over log width.

At the start logits shrink as 1 / sqrt(width) under muP, as they should (attention scores too, where heads grow): what
is checked is the change.

Source: "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer" (2022,
arXiv:2203.03466), appendix on verifying an implementation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import RecipeError
from thalweg.models.blocks import decoder_blocks
from thalweg.reports.comparison_figures import save
from thalweg.reports.coordinate_plot import coordinate_figure
from thalweg.runs import output_folder, write_text
from thalweg.sessions.width_series import MUP, PARAMETERISATIONS, STANDARD, WidthSeries, set_rates, shape_at, step

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PARTS = ("embedding", "attention scores", "attention", "feed-forward", "residual stream", "logits")
# A change that grows or shrinks slower than width^0.25 counts as flat: a few widths and steps tell no better. What
# begins as a random sum that shrinks with width under muP takes some of that into its first changes: to width^-0.5.
FLAT = 0.25
LOWEST = {"attention scores": -0.5, "logits": -0.5}
PROBE = 8  # windows of fixed text

Numbers = dict[str, dict[str, list[list[float]]]]  # parameterisation -> part -> a list a width -> a number a step


@dataclass(frozen=True)
class CoordinateCheck:
    """What was measured.

    Attributes:
        optimizer, rate, base_width, widths, steps, seeds: how; the rate is the base width's.
        sizes, changes: mean size of every part's activations before each step and after the last, and of their change
            since the start; means over seeds.
        growth: by parameterisation and part, the power of the width by which the change after the last step grows.
        holds: whether under muP every change is flat.
    """

    optimizer: str
    rate: float
    base_width: int
    widths: list[int]
    steps: int
    seeds: int
    sizes: Numbers
    changes: Numbers
    growth: dict[str, dict[str, float]]
    holds: bool

    @property
    def verdict(self) -> str:
        """In a sentence."""
        mup, standard = self.growth[MUP], self.growth[STANDARD]
        most = max(standard, key=lambda part: standard[part])
        base = f"With one rate for all, changes grow as fast as width^{standard[most]:.2f} ({most})"
        bad = [f"{part} as width^{slope:.2f}" for part, slope in mup.items() if not flat(part, slope)]
        if bad:
            return f"muP does not hold: under it changes go as {', '.join(bad)}. {base}."
        low, high = min(mup.values()), max(mup.values())
        return f"muP holds: under it changes go as width^{low:.2f} to width^{high:.2f}. {base}."

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "verdict": self.verdict}


def coordinate_check(
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    steps: int = 4,
    optimizer: str = "adamw",
    rate: float | None = None,
    seeds: int = 2,
    out: str | Path | None = "mup-check",
    tell: Callable[[str], None] = lambda line: None,
) -> CoordinateCheck:
    """Check muP at several widths; write `<out>/mup-check.json` and `.png`.

    Args:
        widths: the smallest is the base.
        steps: of training. optimizer: as an arm spells it.
        rate: at the base width; the optimizer's own if left out.
        seeds: of weights and text, over which means are taken.
        out: None writes nothing.
        tell: is given a line whenever a width is done.

    Raises:
        RecipeError: widths that no model has, fewer than two, or an optimizer that there is not.
    """
    widths = sorted(set(widths))
    if len(widths) < 2 or steps < 1 or seeds < 1 or (rate is not None and not 0.0 < rate < math.inf):
        raise RecipeError(
            "a check needs two different widths, a step, a seed and a rate above 0",
            where="--widths, --steps, --seeds, --rate",
        )
    folder = None if out is None else output_folder(out)
    series = WidthSeries(optimizer, base_width=widths[0])
    for width in widths:
        shape_at(width, series.layers)  # a wrong one is told before anything is trained
    lr = series.rate if rate is None else rate
    sizes: Numbers = {name: {part: [] for part in PARTS} for name in PARAMETERISATIONS}
    changes: Numbers = {name: {part: [] for part in PARTS} for name in PARAMETERISATIONS}
    for width in widths:
        for name in PARAMETERISATIONS:
            found = np.mean([_trained(series, width, name, seed, steps, lr) for seed in range(seeds)], axis=0)
            for part, (size, change) in zip(PARTS, found.tolist(), strict=True):
                sizes[name][part].append(size)
                changes[name][part].append(change)
        tell(f"width {width}: done")
    growth = {
        name: {part: _slope(widths, [row[-1] for row in rows]) for part, rows in parts.items()}
        for name, parts in changes.items()
    }
    holds = all(flat(part, slope) for part, slope in growth[MUP].items())
    told = CoordinateCheck(str(series.choice), lr, widths[0], widths, steps, seeds, sizes, changes, growth, holds)
    if folder is not None:
        write_text(folder / "mup-check.json", json.dumps(told.to_dict(), indent=1) + "\n")
        save(coordinate_figure(told.to_dict()), folder / "mup-check.png")
    return told


def _trained(series: WidthSeries, width: int, name: str, seed: int, steps: int, lr: float) -> np.ndarray:
    """Sizes and changes [part, 2, steps + 1] of one model on its way."""
    model, optimizer = series.model(width, name, seed, lr)
    set_rates(optimizer, lr)
    probe = series.held_out(PROBE)["input_ids"]
    before = activations(model, probe)
    rows = [[[float(before[part].abs().mean()), 0.0] for part in PARTS]]
    for _, batch in zip(range(steps), series.batches(seed), strict=False):
        step(model, optimizer, batch)
        now = activations(model, probe)
        rows.append([[float(now[part].abs().mean()), float((now[part] - before[part]).abs().mean())] for part in PARTS])
    return np.array(rows).transpose(1, 2, 0)


@torch.no_grad()
def activations(model: LlamaForCausalLM, tokens: Tensor) -> dict[str, Tensor]:
    """What each part of a model of the ladder puts out for tokens [B, T]; parts of blocks are stacked over blocks.

    The attention scores are those of every token with itself: rotations do not change them.
    """
    caught: dict[str, list[Tensor]] = {}
    blocks = decoder_blocks(model)
    with _catching(model, blocks, caught):
        logits = model(input_ids=tokens, use_cache=False).logits
    heads = (model.config.num_attention_heads, -1)
    scores = []
    for query, key in zip(caught.pop("query"), caught.pop("key"), strict=True):
        products = query.unflatten(-1, heads) * key.unflatten(-1, heads)
        scores.append(products.sum(-1) / math.sqrt(products.shape[-1]))
    return {name: torch.stack(parts) for name, parts in caught.items()} | {
        "attention scores": torch.stack(scores),
        "residual stream": caught["residual stream"][-1],
        "logits": logits,
    }


@contextmanager
def _catching(model: LlamaForCausalLM, blocks: list[Any], caught: dict[str, list[Tensor]]) -> Iterator[None]:
    """Keeps what modules put out, by the name of the part."""
    places = [(model.get_input_embeddings(), "embedding")]
    for block in blocks:
        attention = block.self_attn
        places += [(attention.q_proj, "query"), (attention.k_proj, "key"), (attention, "attention")]
        places += [(block.mlp, "feed-forward"), (block, "residual stream")]

    def catcher(name: str) -> Callable[..., None]:
        def catch(module: Any, inputs: Any, output: Any) -> None:
            caught.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return catch

    handles = [module.register_forward_hook(catcher(name)) for module, name in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def flat(part: str, slope: float) -> bool:
    """Whether a change that goes as width^slope is as good as independent of the width."""
    return LOWEST.get(part, -FLAT) <= slope <= FLAT


def _slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Of log value over log width."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])
