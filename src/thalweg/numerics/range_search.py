"""Smaller ranges for a format's scales, where cutting the largest weights lets all others be closer.

    p = 1, 0.99, ..., 0.21: the scale that p times the weights would have; kept is the p with the least sum |q - w|^2.4

Source: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022, arXiv:2210.17323),
the code of its authors (`mse`): 80 values of p and the exponent 2.4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from thalweg.numerics.number_formats import Fit, Format, Grid

TRIED, STEP, EXPONENT = 80, 0.01, 2.4


def searched(format: Format) -> Fit:
    """The rule for scales that searches each group's range; called as `format.fit` is."""

    def fit(weights: Tensor, tensor_scale: Tensor | None = None) -> Grid:
        whole = format.tensor_scale(weights) if tensor_scale is None else tensor_scale
        best = format.fit(weights, whole)
        least = _error(best, weights)
        for index in range(1, TRIED):
            grid = format.fit(weights * (1.0 - STEP * index), whole)
            error = _error(grid, weights)
            better = error < least
            least = torch.where(better, error, least)
            zero = None if best.zero is None or grid.zero is None else torch.where(better, grid.zero, best.zero)
            best = replace(best, scale=torch.where(better, grid.scale, best.scale), zero=zero)
        return best

    return fit


def _error(grid: Grid, weights: Tensor) -> Tensor:
    return (grid.round(weights) - weights).abs().pow(EXPONENT).sum(-1, keepdim=True)
