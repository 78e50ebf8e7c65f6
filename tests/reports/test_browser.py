"""The report in a real browser: it draws, switches, follows dark mode, fits a phone, and runs nothing foreign.

How a page is opened and asked: browsing.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from thalweg.reports import write_report

CHARTS = ("bits", "loss", "lr", "gradient", "throughput", "mfu")
PROBE = """
(() => {
  const root = document.documentElement, seen = {};
  const place = (id) => document.getElementById("chart-" + id);
  const last = (id) => place(id).data[0].x.at(-1);
  const look = () => ({ axis: root.dataset.axis, x: last("loss"), title: place("loss").layout.xaxis.title.text,
    type: place("loss").layout.xaxis.type, paper: getComputedStyle(document.body).backgroundColor,
    ink: place("loss").layout.font.color, drawn: place("loss").querySelector(".main-svg").clientWidth,
    room: place("loss").clientWidth });
  seen.loaded = look();
  seen.width = [root.clientWidth, root.scrollWidth];
  seen.buttons = Array.from(document.querySelectorAll(".modebar-btn")).map((b) => b.dataset.title);
  document.querySelector('input[value="tokens"]').click();
  seen.tokens = look();
  seen.hash = location.hash;
  document.getElementById("logarithmic").click();
  seen.logarithmic = look();
  dispatchEvent(new Event("beforeprint"));
  seen.printing = look();
  seen.open = document.querySelectorAll("details:not([open])").length;
  dispatchEvent(new Event("afterprint"));
  seen.printed = look();
  seen.closed = document.querySelectorAll("details:not([open])").length;
  const button = document.getElementById("copy");
  let copied = null;
  navigator.clipboard.writeText = async (text) => { copied = text; };
  button.click();
  setTimeout(() => {
    seen.copied = copied;
    seen.button = button.textContent;
    root.dataset.seen = JSON.stringify(seen);
    if (parent !== window) parent.postMessage(root.dataset.seen, "*");
  }, 100);
})();
"""


def test_charts_are_drawn_and_nothing_foreign_runs(run_folder: Path, tmp_path: Path, browsing: ModuleType) -> None:
    page = browsing.visit(write_report(run_folder).as_uri() + "#seconds", tmp_path / "profile")
    assert page.console == []
    assert 'data-axis="seconds"' in page.dom
    parts = re.split(r'<div class="chart[^"]*" id="chart-', page.dom)[1:]
    assert tuple(part.split('"')[0] for part in parts) == CHARTS
    for part in parts:
        assert 'class="main-svg"' in part
        assert re.search(r'class="trace scatter[^"]*".*?<path [^>]*d="M', part, re.DOTALL)
    assert re.search(r"<title>([^<]*)</title>", page.dom.split("<body>")[0]).group(1) == "first-run: Thalweg run"  # type: ignore[union-attr]
    assert "owned" in page.dom
    assert not re.search(r"<img|<script>document", page.dom)


def test_switches_print_and_copy(run_folder: Path, tmp_path: Path, browsing: ModuleType) -> None:
    page = browsing.visit(browsing.probed(write_report(run_folder), PROBE).as_uri(), tmp_path / "profile")
    seen = page.seen
    assert page.console == []
    assert (seen["loaded"]["axis"], seen["loaded"]["x"], seen["loaded"]["title"]) == ("steps", 600, "steps")
    assert (seen["tokens"]["axis"], seen["tokens"]["x"], seen["tokens"]["title"]) == ("tokens", 600 * 4096, "tokens")
    assert seen["hash"] == "#tokens"
    assert (seen["loaded"]["type"], seen["logarithmic"]["type"]) == ("linear", "log")
    assert seen["open"] == 0
    assert seen["closed"] > 3
    assert seen["copied"] == json.loads((run_folder / "environment.json").read_text())["command"]
    assert seen["button"] == "Copied"
    # Plotly's own default offers an upload to its maker.
    assert not any("hare" in title or "loud" in title for title in seen["buttons"])
    assert "Download plot" in seen["buttons"]


def test_dark_mode_and_light_print(run_folder: Path, tmp_path: Path, browsing: ModuleType) -> None:
    address = browsing.probed(write_report(run_folder), PROBE).as_uri()
    seen = browsing.visit(address, tmp_path / "profile", "--blink-settings=preferredColorScheme=0").seen
    dark, light = {"paper": "rgb(18, 24, 27)", "ink": "#e4eae9"}, {"paper": "rgb(252, 252, 250)", "ink": "#1c2427"}
    assert {key: seen["loaded"][key] for key in dark} == dark
    assert {key: seen["printing"][key] for key in dark} == light
    assert {key: seen["printed"][key] for key in dark} == dark
    assert seen["printing"]["drawn"] == 660
    assert seen["printed"]["drawn"] == seen["printed"]["room"] > 660


@pytest.mark.parametrize("width", [360])
def test_phone_has_no_sideways_scroll(run_folder: Path, tmp_path: Path, browsing: ModuleType, width: int) -> None:
    outer = browsing.framed(browsing.probed(write_report(run_folder), PROBE), width)
    page = browsing.visit(outer.as_uri(), tmp_path / "profile")
    inner, content = page.seen["width"]
    assert width - 20 <= inner <= width
    assert content <= inner


def test_interrupted_run_without_plan_draws_too(run_folder: Path, tmp_path: Path, browsing: ModuleType) -> None:
    for name in ("plan.json", "samples.json", "environment.json", "recipe.toml"):
        (run_folder / name).unlink()
    content = (run_folder / "metrics.jsonl").read_bytes()
    (run_folder / "metrics.jsonl").write_bytes(content[: len(content) // 3])
    page = browsing.visit(write_report(run_folder).as_uri(), tmp_path / "profile")
    assert page.console == []
    assert page.dom.count('class="main-svg"') >= len(CHARTS)
    assert "interrupted" in page.dom
    assert "plan.json is missing" in page.dom


def test_long_run_draws_bands(run_folder: Path, tmp_path: Path, browsing: ModuleType) -> None:
    lines = [
        json.dumps({"event": "step", "step": n, "tokens": n, "seconds": n, "loss": 3 + n % 7, "grad_norm": 1 + n % 3})
        for n in range(1, 4001)
    ]
    (run_folder / "metrics.jsonl").write_text("\n".join(lines))
    page = browsing.visit(write_report(run_folder).as_uri(), tmp_path / "profile")
    assert page.console == []
    assert "range of 8 steps" in page.dom
    assert re.search(r'class="js-fill"[^>]*d="M', page.dom)
