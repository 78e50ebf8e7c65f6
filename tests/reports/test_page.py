"""The report as a file: escaping, missing pieces, numbers, size, atomic writing. No browser needed."""

from __future__ import annotations

import html
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from thalweg.errors import RunError
from thalweg.reports import document, write_report
from thalweg.reports.document import embedded_json

SCRIPT = '<script>document.title="owned"</script>'


@pytest.fixture
def elements(browsing: ModuleType) -> Callable[[Path], Any]:
    """Writes the report of a folder and parses it."""
    return lambda folder: browsing.Elements(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture
def chart_data(elements: Callable[[Path], Any]) -> Callable[[Path], dict[str, Any]]:
    """The charts' data inside the report of a folder."""

    def read(folder: Path) -> dict[str, Any]:
        return {chart["id"]: chart for chart in elements(folder).data()["charts"]}

    return read


def append(folder: Path, *events: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_headline_numbers(run_folder: Path, elements: Callable[[Path], Any]) -> None:
    text = re.sub(r"\s+", " ", elements(run_folder).text)
    last = [line for line in (run_folder / "metrics.jsonl").read_text().splitlines() if '"evaluation"' in line][-1]
    event = json.loads(last)
    assert f"{event['held_out_bits_per_byte']:.4f} held-out bits per byte" in text
    assert f"interval {event['low']:.4f} to {event['high']:.4f}, measured at step 600" in text
    assert f"held-out loss{event['held_out_loss']:.4f}" in text.replace("held-out loss ", "held-out loss")
    assert "2 min 02 s" in text
    assert "102.0 % of the budget, 2min" in text
    assert "5.3 M" in text
    assert "finished" in text


def test_plan_beside_result(run_folder: Path) -> None:
    from thalweg.reports.record import read_record
    from thalweg.reports.sections import plan_beside_result

    rows = {row["name"]: row for row in plan_beside_result(read_record(run_folder))}
    assert rows["steps"] | {"note": ""} == {
        "name": "steps", "planned": "605", "planned_interval": "", "measured": "600", "measured_interval": "",
        "difference": "-0.8 %", "note": "",
    }  # fmt: skip
    assert rows["held-out bits per byte"]["note"] == "above the predicted interval"
    assert rows["epochs"]["measured"] == "0.7934"
    assert rows["time"]["difference"] == "+2.0 %"


def test_planted_markup_is_text(run_folder: Path, elements: Callable[[Path], Any]) -> None:
    parsed = elements(run_folder)
    assert len(parsed.scripts) == 4
    assert parsed.scripts[0] == get_plotlyjs()
    assert parsed.scripts[2:] == [document.own_file("page.js"), document.own_file("report.js")]
    assert not any(tag == "img" for tag, _ in parsed.tags)
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    # corpus, recipe, reason, command and sample
    assert parsed.text.count(SCRIPT) >= 5
    assert [tag for tag, _ in parsed.tags].count("title") == 1


def test_name_of_the_folder_is_text_too(run_folder: Path, elements: Callable[[Path], Any]) -> None:
    folder = run_folder.rename(run_folder.parent / "<img src=x onerror=alert(1)>")
    parsed = elements(folder)
    assert not any(tag == "img" for tag, _ in parsed.tags)
    assert "<img src=x onerror=alert(1)>" in parsed.text


def test_template_syntax_in_foreign_text_is_text(run_folder: Path, elements: Callable[[Path], Any]) -> None:
    (run_folder / "samples.json").write_text(json.dumps([{"step": 1, "prompt": "{{ 7*7 }}", "text": "{% raw %}"}]))
    assert "{{ 7*7 }}{% raw %}" in elements(run_folder).text


def test_embedded_json_cannot_end_its_element() -> None:
    hostile = {"a": "</script><!--<script>&\u2028\u2029", "b": [None, 1.5]}
    text = embedded_json(hostile)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == hostile
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded_json([float("nan")])


def test_policy_allows_only_the_pages_scripts(run_folder: Path, elements: Callable[[Path], Any]) -> None:
    import base64
    import hashlib

    parsed = elements(run_folder)
    policies = [a["content"] or "" for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in policies[0].split(";"))
    assert directives["default-src"] == "'none'"
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in (parsed.scripts[0], *parsed.scripts[2:])
    ]
    assert directives["script-src"].split() == hashes


def test_page_asks_nothing_of_the_network(run_folder: Path, elements: Callable[[Path], Any]) -> None:
    parsed = elements(run_folder)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)


@pytest.mark.parametrize("name", ["recipe.toml", "plan.json", "environment.json", "metrics.jsonl", "samples.json"])
def test_missing_file_is_said(run_folder: Path, name: str, elements: Callable[[Path], Any]) -> None:
    (run_folder / name).unlink()
    assert f"{name} is missing" in elements(run_folder).text


@pytest.mark.parametrize("name", ["recipe.toml", "plan.json", "environment.json", "samples.json"])
@pytest.mark.parametrize("content", [b'{"torn": ', b"\xff\xfe\x00", b"", b"[" * 100_000, b"3"])
def test_damaged_file_is_no_crash(run_folder: Path, name: str, content: bytes, elements: Callable[[Path], Any]) -> None:
    (run_folder / name).write_bytes(content)
    text = elements(run_folder).text
    if not (name == "recipe.toml" and content == b""):
        assert name in text


@pytest.mark.parametrize(
    "plan",
    [{"chosen": 3, "candidates": {"a": 1}, "reasons": [1], "machine": "x", "law": 7, "budget": 5, "corpus": None},
     {"chosen": {"steps": "many", "tokens": 0, "tokens_per_second": 0, "epochs": None}, "budget": "soon"},
     {"chosen": {"model": ["a"], "tokens": 1e400}, "candidates": [None, {"model": {}}]}],
)  # fmt: skip
def test_plan_of_the_wrong_types_is_no_crash(
    run_folder: Path, plan: dict[str, Any], elements: Callable[[Path], Any]
) -> None:
    (run_folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert "first-run" in elements(run_folder).text


def test_empty_folder(tmp_path: Path, elements: Callable[[Path], Any]) -> None:
    text = elements(tmp_path).text
    assert "No training step is recorded yet" in text
    assert text.count("is missing") == 5


def test_no_folder_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run"):
        write_report(tmp_path / "none")


def test_half_surrogates_and_control_characters_can_be_written(
    run_folder: Path, elements: Callable[[Path], Any]
) -> None:
    (run_folder / "samples.json").write_text('[{"step": 1, "prompt": "\\ud800", "text": "a\\u0000b\\u202e"}]')
    assert "⟨U+D800⟩a␀b⟨U+202E⟩" in elements(run_folder).text


def test_numbers_that_are_none_do_not_reach_the_charts(
    run_folder: Path, elements: Callable[[Path], Any], chart_data: Callable[[Path], Any]
) -> None:
    lines = ['{"event":"step","step":601,"tokens":NaN,"seconds":null,"loss":NaN,"lr":Infinity,"grad_norm":-Infinity}']
    lines += ['{"event":"evaluation","step":601,"held_out_loss":NaN,"held_out_bits_per_byte":NaN,"low":null}']
    with (run_folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    charts = chart_data(run_folder)
    assert all(y is not None for chart in charts.values() for series in chart["series"] for y in series["y"])
    assert "diverged" in elements(run_folder).text


def test_series_have_three_axes_of_one_length(run_folder: Path, chart_data: Callable[[Path], Any]) -> None:
    charts = chart_data(run_folder)
    assert set(charts) == {"bits", "loss", "lr", "gradient", "throughput", "mfu"}
    for chart in charts.values():
        assert chart["series"], chart["id"]
        for series in chart["series"]:
            assert len({len(series[key]) for key in ("steps", "tokens", "seconds", "y")}) == 1
    assert charts["loss"]["marks"]["kinds"] == ["skip", "restore"]
    assert charts["loss"]["marks"]["steps"] == [200, 300]
    assert charts["loss"]["series"][0]["steps"][-1] == 600
    planned = charts["bits"]["series"][-1]
    assert (planned["name"], planned["steps"], planned["y"], planned["low"]) == ("planned", [605], [1.38], [1.3])


def test_long_run_gives_a_small_report(run_folder: Path, chart_data: Callable[[Path], Any]) -> None:
    noise = random.Random(0)
    with (run_folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, 60_001):
            values = ",".join(
                f'"{name}":{noise.random()}'
                for name in ("loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second", "mfu")
            )
            file.write(f'{{"event":"step","step":{step},"tokens":{step * 64},"seconds":{step / 9},{values}}}\n')
        file.write('{"event":"step","step":60001,"tokens":3840064,"seconds":6667,"loss":77.0}\n')
    charts = chart_data(run_folder)
    band = charts["loss"]["series"][0]
    assert band["kind"] == "band"
    assert max(band["high"]) == 77.0
    assert all(0 <= low <= high for low, high in zip(band["low"], band["high"], strict=True))
    assert max(len(series["y"]) for chart in charts.values() for series in chart["series"]) <= 2000
    assert charts["loss"]["series"][0]["steps"][-1] == 60_001
    size = (run_folder / "report.html").stat().st_size
    assert 4_500_000 < size < 6_500_000


def test_writing_is_atomic(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = run_folder / "report.html"
    target.write_text("the old report")
    before = set(run_folder.iterdir())

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(run_folder)
    assert target.read_text() == "the old report"
    assert set(run_folder.iterdir()) == before
    monkeypatch.undo()
    assert write_report(run_folder) == target
    assert set(run_folder.iterdir()) == before
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_report_is_the_same_each_time(run_folder: Path) -> None:
    assert write_report(run_folder).read_bytes() == write_report(run_folder).read_bytes()


def test_command_is_shown_whole(run_folder: Path) -> None:
    source = write_report(run_folder).read_text(encoding="utf-8")
    command = json.loads((run_folder / "environment.json").read_text())["command"]
    found = re.search(r'<pre id="command" tabindex="0">(.*?)</pre>', source, re.DOTALL)
    assert found is not None
    assert html.unescape(found.group(1)) == command


def test_importing_reports_is_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, thalweg.reports; print([n for n in ('torch', 'plotly', 'jinja2', 'pandas') if n in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"
