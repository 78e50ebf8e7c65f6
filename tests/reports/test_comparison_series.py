"""The numbers behind a comparison's charts, and the matplotlib figures made of them."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from thalweg.reports import comparison_figures, comparison_series, pictures


def test_mean_curve_of_equal_evaluations_is_the_mean_of_each() -> None:
    runs = [[(100.0, 3.0), (200.0, 2.0)], [(110.0, 3.2), (220.0, 2.4)]]
    line = comparison_series.mean_curve(runs)
    assert line == {"x": [105, 210], "y": [3.1, 2.2], "low": [3, 2], "high": [3.2, 2.4]}


def test_mean_curve_of_unequal_evaluations_reads_off_lines_where_all_are() -> None:
    # The second curve is the line 4 - x / 100; the common stretch is 100 to 200.
    runs = [[(0.0, 5.0), (100.0, 3.0), (200.0, 2.0)], [(100.0, 3.0), (300.0, 1.0)]]
    line = comparison_series.mean_curve(runs)
    assert line == {"x": [100, 200], "y": [3, 2], "low": [3, 2], "high": [3, 2]}
    assert comparison_series.mean_curve([[], []])["x"] == []


def test_long_unequal_curves_stay_small() -> None:
    runs = [[(float(x), 1.0 + x) for x in range(5000)], [(float(x), 3.0 + x) for x in range(4000)]]
    line = comparison_series.mean_curve(runs)
    assert len(line["x"]) == comparison_series.GRID
    assert (line["x"][0], line["x"][-1], line["y"][0], line["y"][-1]) == (0, 3999, 2, 4001)


def test_points_skip_what_is_missing_or_goes_back() -> None:
    curve = {"steps": [10, 20, 15, 30, None, 40], "bits_per_byte": [3.0, None, 2.5, math.nan, 2.0, 1.9]}
    assert comparison_series.points({"curve": curve}, "steps") == [(10.0, 3.0), (15.0, 2.5), (40.0, 1.9)]
    assert comparison_series.points({"curve": None}, "steps") == []


def test_failed_runs_are_apart(comparison: ModuleType) -> None:
    workload = comparison.workload("1M")
    series = {one["name"]: one for one in comparison_series.curves(workload)["series"]}
    assert series["adamw+cosine"]["failed"] == []
    failed = series["muon+constant"]
    assert (failed["seeds"], failed["along"]["steps"]["y"]) == (0, [])
    assert [run["seed"] for run in failed["failed"]] == ["0", "1", "2"]
    assert failed["failed"][0]["steps"]["x"] == [50, 100, 150, 200]


def test_first_view_shows_where_every_arm_ended(comparison: ModuleType) -> None:
    workload = comparison.workload("1M")
    found = comparison_series.curves(workload)
    ends = [run["curve"]["bits_per_byte"] for arm in workload["arms"][:5] for run in arm["runs"]]
    low, high = found["focus"]
    assert low < min(map(min, ends))
    assert max(end[-1] for end in ends) < high < max(end[0] for end in ends)


def test_differences_are_paired_by_seed(comparison: ModuleType) -> None:
    workload = comparison.workload("1M")
    baseline, second = workload["arms"][0]["runs"], workload["arms"][1]["runs"]
    # Another order, and one seed that failed: the pairs are of the same seeds all the same.
    second.reverse()
    baseline[1] |= {"status": "failed", "bits_per_byte": None}
    one = comparison_series.differences(workload)["series"][0]
    expected = [second[2 - seed]["bits_per_byte"] - baseline[seed]["bits_per_byte"] for seed in (0, 2)]
    assert one["seeds"] == ["0", "2"]
    assert one["dots"] == pytest.approx(expected, rel=1e-5)


def test_margin_is_relative_to_the_baseline(comparison: ModuleType) -> None:
    results = comparison.results()
    mean = statistics.fmean(run["bits_per_byte"] for run in results["workloads"][0]["arms"][0]["runs"])
    assert comparison_series.margin(results, results["workloads"][0]) == pytest.approx(0.002 * mean)
    assert comparison_series.margin({}, {"arms": []}) == 0


def test_tuning_has_a_panel_a_value(comparison: ModuleType) -> None:
    panels = {panel["title"]: panel for panel in comparison_series.tuning(comparison.workload("1M", tuned=True))}
    assert list(panels) == ["peak_lr", "weight_decay", "wsd:decay"]
    assert [panels[name]["log"] for name in panels] == [True, False, False]
    assert [len(panels[name]["series"]) for name in panels] == [2, 2, 1]
    trials = panels["peak_lr"]["series"][0]["trials"]
    assert [trial["won"] for trial in trials] == [False, False, True, False, False, False]
    assert [trial["y"] is None for trial in trials] == [False, False, False, False, True, False]
    # The trial that diverged by four bits is beyond the scale, the others are within.
    top = panels["peak_lr"]["top"]
    assert [trial["y"] > top for trial in trials if trial["y"] is not None] == [False, False, False, False, True]
    assert comparison_series.tuning(comparison.workload("1M")) == []


def test_colours_of_many_arms_never_repeat_the_baselines() -> None:
    places = [comparison_series.colour(arm) for arm in range(40)]
    assert places.count(0) == 1
    assert max(places) == len(comparison_series.PALETTE) - 1


@pytest.mark.parametrize("name", ["curves", "differences", "tuning"])
def test_figures_are_files_that_repeat(comparison: ModuleType, tmp_path: Path, name: str) -> None:
    for kind, results in (("good", comparison.results(tuned=True)), ("hostile", comparison.hostile())):
        figure = getattr(comparison_figures, name)(results)
        first = pictures.save(figure, tmp_path / f"{kind}.svg").read_bytes()
        again = pictures.save(getattr(comparison_figures, name)(results), tmp_path / "again.svg").read_bytes()
        assert first == again
        assert b"<script" not in first.replace(b"&lt;", b"")
        assert len(first) < 200_000
    picture = pictures.save(figure, tmp_path / "picture.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_figure_of_curves_shows_the_numbers(comparison: ModuleType) -> None:
    results = comparison.results()
    axes = comparison_figures.curves(results, axis="tokens").axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    finals = [run["bits_per_byte"] for run in results["workloads"][0]["arms"][1]["runs"]]
    assert lines["muon+wsd:decay=0.2"].get_ydata()[-1] == pytest.approx(statistics.fmean(finals), rel=1e-5)
    assert lines["muon+wsd:decay=0.2"].get_xdata()[-1] == 600 * 4096
    assert "muon+constant (failed)" in lines
    assert axes.get_xlabel() == "tokens"


def test_figure_of_differences_shows_the_numbers(comparison: ModuleType) -> None:
    results = comparison.results()
    axes = comparison_figures.differences(results).axes[0]
    labels = [label.get_text().split("\n") for label in axes.get_yticklabels()]
    assert [label[1] for label in labels] == ["better", "tied", "undecided", "worse", "failed"]
    means = [arm["difference"]["mean"] for arm in results["workloads"][0]["arms"][1:5]]
    drawn = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "D"]
    assert drawn == pytest.approx(means, rel=1e-5)


def test_dollars_are_no_mathematics() -> None:
    assert re.fullmatch(r"a\\\$b\\\$", pictures.plain("a$b$"))
