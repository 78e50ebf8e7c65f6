"""Figures of laws: the numbers that are drawn, and files that repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from thalweg.errors import UserError
from thalweg.laws import asymptote, chinchilla, data_filtering, moe_sparsity
from thalweg.laws.data_filtering import Bucket, FilteringLaw
from thalweg.laws.infinite_compute import REGULARISED
from thalweg.laws.pareto import Candidate, frontier
from thalweg.laws.roofline import Architecture
from thalweg.reports import law_plots
from thalweg.reports.pictures import save

SIZES = (0.15, 0.3, 0.6, 1.4)
ENDS = [(x, float(REGULARISED.predict(x))) for x in SIZES]
BUCKETS = FilteringLaw((Bucket(-0.15, 3), Bucket(-0.18, 3), Bucket(-0.12, 3)), 1e6, a=1.0, d=0.1, unit=1e3)
SINGLE = [(b, n * 1e6, BUCKETS.predict(n * 1e6, [b])) for b in range(3) for n in (0.5, 1, 2, 4, 8)]
TASKS = [
    (n, t, (n / 1e9) ** -0.1 * (1 + 0.02 * np.log(t / 20) ** 2)) for n in (2e8, 1e9) for t in (4, 8, 16, 32, 64, 128)
]
RUNS = [
    (n * 1e6, d * 1e7, float(chinchilla.REPLICATION.predict(n * 1e6, d * 1e7))) for n in (1, 2, 4) for d in (2, 5, 10)
]


def offered() -> list[Candidate]:
    generator = np.random.default_rng(0)
    dense, routed = Architecture(2, 64, 64, 128, 100), Architecture(2, 64, 64, 128, 100, experts=8, active=1)
    return [Candidate((dense, routed)[i % 2], *generator.uniform(0.1, 1, size=3)) for i in range(40)]


def figures() -> dict[str, Figure]:
    law = asymptote.fit(np.array(ENDS), refits=20)
    return {
        "chinchilla": law_plots.chinchilla(chinchilla.fit(RUNS, refits=10), RUNS),
        "infinite": law_plots.infinite_compute(
            {"regularised": law, "the paper's": REGULARISED},
            dict.fromkeys(("regularised", "the paper's"), ENDS),
            "parameters (billions)",
        ),
        "filtering": law_plots.data_filtering(data_filtering.fit(SINGLE, 1e6, d=0.1, refits=10), (5e5, 6.4e7), SINGLE),
        "sparsity": law_plots.moe_sparsity(moe_sparsity.fit(TASKS, refits=20), TASKS),
        "codesign": law_plots.roofline_codesign(offered(), seconds=0.8, memory=0.9),
    }


def lines(figure: Figure) -> dict[str, Any]:
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


def test_figures_are_files_that_repeat(tmp_path: Path) -> None:
    for (name, first), second in zip(figures().items(), figures().values(), strict=True):
        drawn = save(first, tmp_path / f"{name}.svg").read_bytes()
        assert drawn == save(second, tmp_path / "again.svg").read_bytes()
        assert len(drawn) < 200_000
        assert save(first, tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_ends_are_drawn_and_named() -> None:
    figure = figures()["infinite"]
    assert "regularised, ends at 3.43" in lines(figure)
    levels = [line.get_ydata()[0] for line in figure.axes[0].get_lines() if line.get_linestyle() == ":"]
    assert levels == pytest.approx([3.43, 3.43])
    curve = lines(figure)["the paper's, ends at 3.43"]
    assert curve.get_ydata() == pytest.approx(REGULARISED.predict(curve.get_xdata()))
    # A band for the law that was fitted, none for the published one.
    assert len(figure.axes[0].collections) == 1


def test_unions_are_drawn_with_their_crossing() -> None:
    found = lines(law_plots.data_filtering(BUCKETS, (5e5, 6.4e7), SINGLE))
    assert {"best bucket", "best 2 buckets", "best 3 buckets"} <= set(found)
    last = [found[name].get_ydata()[-1] for name in ("best bucket", "best 2 buckets", "best 3 buckets")]
    assert last == pytest.approx([0.33121, 0.31269, 0.32114], abs=6e-6)
    axes = law_plots.data_filtering(BUCKETS, (5e5, 6.4e7), SINGLE).axes[0]
    stars = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "*"]
    assert len(stars) == 1
    assert 8e6 < stars[0] < 16e6
    # Points of the best bucket, which is not the first.
    dots = [line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata())]
    assert list(dots[0].get_ydata()) == [error for bucket, _, error in SINGLE if bucket == 1]


def test_task_losses_by_active_size() -> None:
    figure = figures()["sparsity"]
    assert {"200M active", "1B active"} <= set(lines(figure))
    upright = [line for line in figure.axes[0].get_lines() if list(line.get_ydata()) == [0, 1]]
    assert upright[0].get_xdata()[0] == pytest.approx(20, rel=0.02)
    monotone = [(n, t, (n / 1e9) ** -0.1 * t**0.1) for n, t, _ in TASKS]
    figure = law_plots.moe_sparsity(moe_sparsity.fit(monotone, refits=20), monotone)
    assert [line for line in figure.axes[0].get_lines() if list(line.get_ydata()) == [0, 1]] == []


def test_the_frontier_is_drawn() -> None:
    found = lines(figures()["codesign"])
    kept = frontier(offered(), 0.8, 0.9)
    assert list(found["nothing better"].get_ydata()) == [one.loss for one in kept]
    assert len(found["dense"].get_xdata()) + len(found["experts"].get_xdata()) == 40


def test_tokens_are_named_and_drawn() -> None:
    figure = figures()["chinchilla"]
    found = lines(figure)
    assert {"20M tokens", "50M tokens", "100M tokens"} <= set(found)
    curve = found["50M tokens"]
    assert curve.get_ydata() == pytest.approx(chinchilla.REPLICATION.predict(curve.get_xdata(), 5e7), rel=1e-3)
    with pytest.raises(UserError, match="rows of 3"):
        law_plots.chinchilla(chinchilla.REPLICATION, [(1e6, 1e7)])
