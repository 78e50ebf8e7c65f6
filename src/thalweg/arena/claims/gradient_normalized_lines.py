"""Does an approximate Hessian keep the rate of the exact one? Logistic regression that tells code from prose by line.

A line of the standard library is 48 numbers, how often its commonest characters stand in it; 800 lines, mean
logistic loss with a small ridge, from zero to a gradient of 1e-8. Gauss-Newton is the Hessian here, so the arms are

    exact       the Hessian                        fisher     the sum of squared gradients of the lines
    gradient    the same search without a matrix

The source proves a linear rate for the Fisher matrix and shows, on other problems, approximate runs that nearly
coincide with exact ones while the gradient method falls behind. That picture is what is looked for.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from thalweg import catalog
from thalweg.arena.claims.finding import Finding
from thalweg.arena.claims.small_text import CODE
from thalweg.numerics.dense_curvature import exact, fisher

LINES, CHARACTERS, RIDGE = 400, 48, 1e-3
TOLERANCE, MOST = 1e-8, 1000
NEAR = 2.0


def gradient_normalized_lines(seed: int = 0) -> Finding:
    """Steps and solves of all arms."""
    features, labels = _lines(seed)
    minimise = catalog.resolve("gradient_normalized")

    def terms(x: Tensor) -> Tensor:
        return functional.softplus(-labels * (features @ x)) / len(labels)

    def function(x: Tensor) -> Tensor:
        return terms(x).sum() + RIDGE / 2 * x.square().sum()

    ridge = RIDGE * torch.eye(CHARACTERS, dtype=torch.float64)
    squares = fisher(terms, weight=float(len(labels)))
    arms = {
        "exact": exact(function),
        "fisher": lambda x: squares(x) + ridge,
        "gradient": None,
    }
    start = torch.zeros(CHARACTERS, dtype=torch.float64)
    found = {name: minimise(function, start, arm, steps=MOST, tolerance=TOLERANCE) for name, arm in arms.items()}
    ratio = found["fisher"].iterations / found["exact"].iterations
    near = found["exact"].converged and found["fisher"].converged and ratio <= NEAR
    return Finding(
        numbers={
            **{f"{name} steps": one.iterations for name, one in found.items()},
            **{f"{name} solves": one.solves for name, one in found.items()},
            **{f"{name} gradient at the end": one.gradient_norm for name, one in found.items()},
            **{f"{name} loss": one.value for name, one in found.items()},
        },
        holds=near and not found["gradient"].converged,
        sentence=(
            f"To a gradient of 1e-8 the exact Hessian takes {_steps(found['exact'])}, the Fisher matrix "
            f"{_steps(found['fisher'])}, no matrix {_steps(found['gradient'])}."
        ),
    )


def _steps(found: object) -> str:
    steps, norm = found.iterations, found.gradient_norm  # type: ignore[attr-defined]
    return f"{steps} steps" if found.converged else f"more than {steps} ({norm:.1e} is reached)"  # type: ignore[attr-defined]


def _lines(seed: int) -> tuple[Tensor, Tensor]:
    """(features [lines, characters] of mean 0 and unit variance, labels +1 for code and -1 for prose)."""
    from pydoc_data.topics import topics

    folder = Path(sysconfig.get_paths()["stdlib"])
    kinds = [
        "\n".join(topics[name] for name in sorted(topics)),
        "\n".join((folder / name).read_text(encoding="utf-8") for name in CODE),
    ]
    generator = torch.Generator().manual_seed(seed)
    chosen: list[str] = []
    for text in kinds:
        lines = [line for line in text.splitlines() if len(line.strip()) >= 20]
        chosen += [lines[int(i)] for i in torch.randperm(len(lines), generator=generator)[:LINES]]
    together = "".join(chosen)
    common = sorted(set(together), key=lambda character: (-together.count(character), character))[:CHARACTERS]
    counts = torch.tensor([[line.count(one) / len(line) for one in common] for line in chosen], dtype=torch.float64)
    features = (counts - counts.mean(0)) / counts.std(0)
    return features, torch.tensor([-1.0] * LINES + [1.0] * LINES, dtype=torch.float64)
