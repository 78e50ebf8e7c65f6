"""The report in a real browser: it draws, switches, follows dark mode, fits a phone, and runs nothing foreign.

A small probe is added to a copy of the page (its hash to the copy's policy) and leaves what it saw in the document.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from thalweg.reports import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium on the PATH")

CHARTS = ("bits", "loss", "lr", "gradient", "throughput", "mfu")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=4000",
    "--dump-dom",
]
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


@dataclass(frozen=True)
class Visit:
    """The document after its scripts ran, and what the browser's console said."""

    dom: str
    console: list[str]

    @property
    def seen(self) -> dict[str, Any]:
        found = re.search(r'<html[^>]*data-seen="([^"]*)"', self.dom)
        assert found is not None, self.console
        return json.loads(html.unescape(found.group(1)))


def visit(address: str, profile: Path, *flags: str) -> Visit:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, encoding="utf-8", check=True)
    return Visit(result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line])


def probed(report: Path) -> Path:
    """A copy of the report that tells what it sees."""
    source = report.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    source = source.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    copy = report.with_name("probed.html")
    copy.write_text(source.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    return copy


def test_charts_are_drawn_and_nothing_foreign_runs(run_folder: Path, tmp_path: Path) -> None:
    page = visit(write_report(run_folder).as_uri() + "#seconds", tmp_path / "profile")
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


def test_switches_print_and_copy(run_folder: Path, tmp_path: Path) -> None:
    page = visit(probed(write_report(run_folder)).as_uri(), tmp_path / "profile")
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


def test_dark_mode_and_light_print(run_folder: Path, tmp_path: Path) -> None:
    address = probed(write_report(run_folder)).as_uri()
    seen = visit(address, tmp_path / "profile", "--blink-settings=preferredColorScheme=0").seen
    dark, light = {"paper": "rgb(18, 24, 27)", "ink": "#e4eae9"}, {"paper": "rgb(252, 252, 250)", "ink": "#1c2427"}
    assert {key: seen["loaded"][key] for key in dark} == dark
    assert {key: seen["printing"][key] for key in dark} == light
    assert {key: seen["printed"][key] for key in dark} == dark
    assert seen["printing"]["drawn"] == 660
    assert seen["printed"]["drawn"] == seen["printed"]["room"] > 660


@pytest.mark.parametrize("width", [360])
def test_phone_has_no_sideways_scroll(run_folder: Path, tmp_path: Path, width: int) -> None:
    # A headless window is never narrower than 500 pixels: a frame of the phone's width is.
    frame = probed(write_report(run_folder)).as_uri()
    outer = tmp_path / "phone.html"
    outer.write_text(
        f'<!DOCTYPE html><html><body><iframe src="{frame}" style="border:0;width:{width}px;height:800px"></iframe>'
        '<script>addEventListener("message", (e) => { document.documentElement.dataset.seen = e.data; });</script>'
    )
    page = visit(outer.as_uri(), tmp_path / "profile")
    inner, content = page.seen["width"]
    assert width - 20 <= inner <= width
    assert content <= inner


def test_interrupted_run_without_plan_draws_too(run_folder: Path, tmp_path: Path) -> None:
    for name in ("plan.json", "samples.json", "environment.json", "recipe.toml"):
        (run_folder / name).unlink()
    content = (run_folder / "metrics.jsonl").read_bytes()
    (run_folder / "metrics.jsonl").write_bytes(content[: len(content) // 3])
    page = visit(write_report(run_folder).as_uri(), tmp_path / "profile")
    assert page.console == []
    assert page.dom.count('class="main-svg"') >= len(CHARTS)
    assert "interrupted" in page.dom
    assert "plan.json is missing" in page.dom


def test_long_run_draws_bands(run_folder: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"event": "step", "step": n, "tokens": n, "seconds": n, "loss": 3 + n % 7, "grad_norm": 1 + n % 3})
        for n in range(1, 4001)
    ]
    (run_folder / "metrics.jsonl").write_text("\n".join(lines))
    page = visit(write_report(run_folder).as_uri(), tmp_path / "profile")
    assert page.console == []
    assert "range of 8 steps" in page.dom
    assert re.search(r'class="js-fill"[^>]*d="M', page.dom)
