"""The page of a comparison in a real browser: it draws, sorts, switches, fits a phone, runs nothing foreign."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from thalweg.reports import comparison_page

PROBE = """
(() => {
  const root = document.documentElement, seen = {};
  const place = (id) => document.getElementById("chart-" + id);
  const table = document.getElementById("verdicts-0");
  const names = () => Array.from(table.tBodies[0].rows).map((row) => row.cells[0].textContent);
  const button = (column) => table.tHead.rows[0].cells[column].querySelector("button");
  const sorts = () => Array.from(table.tHead.rows[0].cells).map((cell) => cell.getAttribute("aria-sort"));
  const curves = place("curves-0");
  const look = () => ({ title: curves.layout.xaxis.title.text, hover: curves.layout.hovermode,
    last: curves.data.find((trace) => trace.name === "adamw+cosine" && trace.showlegend !== false).x.at(-1) });
  seen.width = [root.clientWidth, root.scrollWidth];
  seen.unsorted = names();
  button(2).click();
  seen.ascending = names();
  seen.sorts = sorts();
  button(2).click();
  seen.descending = names();
  seen.resorts = sorts();
  button(1).focus();
  seen.focused = document.activeElement === button(1);
  button(1).click();
  seen.verdicts = Array.from(table.tBodies[0].rows).map((row) => row.querySelector(".verdict").textContent);
  seen.steps = look();
  document.querySelector('input[value="seconds"]').click();
  seen.seconds = look();
  seen.hash = location.hash;
  const toggle = curves.querySelector(".legendtoggle");
  for (const kind of ["mousedown", "mouseup"]) toggle.dispatchEvent(new MouseEvent(kind, { bubbles: true }));
  setTimeout(() => {
    seen.hidden = curves.data.filter((trace) => trace.visible === "legendonly").map((trace) => trace.name);
    document.querySelector('input[value="tokens"]').click();
    seen.kept = curves.data.filter((trace) => trace.visible === "legendonly").map((trace) => trace.name);
    root.dataset.seen = JSON.stringify(seen);
    if (parent !== window) parent.postMessage(root.dataset.seen, "*");
  }, 1200);
})();
"""
NAMES = ["adamw+cosine", "muon+wsd:decay=0.2", "adamw+cosine+z_loss", "adamw+linear", "adamw+constant", "muon+constant"]


@pytest.fixture
def written(comparison: ModuleType, tmp_path: Path) -> Path:
    return comparison_page.write(comparison.results(several=True, tuned=True), tmp_path / "report.html")


def test_every_chart_is_drawn(written: Path, tmp_path: Path, browsing: ModuleType) -> None:
    page = browsing.visit(written.as_uri(), tmp_path / "profile")
    assert page.console == []
    parts = re.split(r'<div class="chart[^"]*"[^>]* id="chart-', page.dom)[1:]
    ids = [part.split('"')[0] for part in parts]
    assert ids[0] == "profile"
    assert {"curves-0", "curves-1", "differences-0", "differences-1", "tuning-0-0", "tuning-1-2"} < set(ids)
    assert len(ids) == 11
    for part in parts:
        assert re.search(r'class="trace scatter[^"]*".*?<path [^>]*d="M', part, re.DOTALL)


def test_sorting_axis_and_legend(written: Path, comparison: ModuleType, tmp_path: Path, browsing: ModuleType) -> None:
    page = browsing.visit(browsing.probed(written, PROBE).as_uri(), tmp_path / "profile")
    seen = page.seen
    assert page.console == []
    assert seen["unsorted"] == NAMES
    arms = comparison.results()["workloads"][0]["arms"]
    means = {arm["name"]: arm["bits_per_byte"]["mean"] for arm in arms if arm["bits_per_byte"]}
    # What was not measured comes last in both directions.
    assert seen["ascending"] == [*sorted(means, key=means.__getitem__), "muon+constant"]
    assert seen["descending"] == [*sorted(means, key=means.__getitem__, reverse=True), "muon+constant"]
    assert seen["sorts"] == [None, None, "ascending", *[None] * 6]
    assert seen["resorts"] == [None, None, "descending", *[None] * 6]
    assert seen["focused"] is True
    assert seen["verdicts"] == ["better", "tied", "undecided", "worse", "failed", "baseline"]
    assert seen["steps"] == {"title": "steps", "hover": "x unified", "last": 600}
    # 2 s and 600 steps of 90, 94 and 98 ms: the mean over the seeds
    assert seen["seconds"] == {"title": "seconds", "hover": "closest", "last": pytest.approx(2 + 600 * 0.094)}
    assert seen["hash"] == "#seconds"
    # The arm's band goes with its line, and the choice survives another axis.
    assert seen["hidden"] == ["adamw+cosine", "adamw+cosine"]
    assert seen["kept"] == seen["hidden"]


def test_hostile_results_run_nothing(comparison: ModuleType, tmp_path: Path, browsing: ModuleType) -> None:
    written = comparison_page.write(comparison.hostile(), tmp_path / "report.html")
    page = browsing.visit(written.as_uri(), tmp_path / "profile")
    assert page.console == []
    assert "6 arms compared" in re.search(r"<title>([^<]*)</title>", page.dom).group(1)  # type: ignore[union-attr]
    assert not re.search(r"<img|<script>document", page.dom)
    assert page.dom.count('class="main-svg"') > 6


def test_phone_has_no_sideways_scroll(written: Path, tmp_path: Path, browsing: ModuleType) -> None:
    page = browsing.visit(browsing.framed(browsing.probed(written, PROBE), 360).as_uri(), tmp_path / "profile")
    inner, content = page.seen["width"]
    assert 340 <= inner <= 360
    assert content <= inner


def test_without_tuning_and_with_one_seed(comparison: ModuleType, tmp_path: Path, browsing: ModuleType) -> None:
    results = comparison.results()
    for arm in results["workloads"][0]["arms"]:
        arm["runs"] = arm["runs"][:1]
        for key in ("bits_per_byte", "difference"):
            arm[key] = arm[key] and {**arm[key], "low": None, "high": None, "n": 1}
    page = browsing.visit(comparison_page.write(results, tmp_path / "r.html").as_uri(), tmp_path / "profile")
    assert page.console == []
    assert page.dom.count('class="main-svg"') >= 2
    assert "Tuning" not in page.dom.split("</main>")[0]
