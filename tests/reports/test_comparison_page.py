"""The page of a comparison as a file: numbers, escaping, policy, size; nothing of it needs a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from thalweg.reports import comparison_page, document


@pytest.fixture
def parsed(browsing: ModuleType, tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """Writes the page of results and parses it."""

    def write(results: dict[str, Any]) -> Any:
        return browsing.Elements(comparison_page.write(results, tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def squeezed(page: Any) -> str:
    return re.sub(r"\s+", " ", page.text)


def test_tables_say_everything_without_a_script(comparison: ModuleType, parsed: Callable[[Any], Any]) -> None:
    results = comparison.results(several=True, tuned=True)
    text = squeezed(parsed(results))
    for workload in results["workloads"]:
        for arm in workload["arms"][:5]:
            bits = arm["bits_per_byte"]
            assert f"{bits['mean']:.4f}{bits['low']:.4f} to {bits['high']:.4f}" in text
            for run in arm["runs"]:
                assert f"{run['bits_per_byte']:.4f}" in text
        for arm in workload["arms"][:2]:
            assert all(f"{t['bits_per_byte']:.4f}" in text for t in arm["trials"] if t["status"] == "finished")
    for words in (
        "Against adamw+cosine: 1 better, 1 tied, 1 undecided, 1 worse, 1 failed.",
        "muon+constant, seeds 0, 1, 2 failed: the loss was not finite for 20 steps",
        "lower by 0.0610 (0.0560 to 0.0660), p = 0.012",
        "9 more seeds may decide",
        "a budget in seconds: the machine's noise enters",
        "1.5 times the tokens/s of one run with 2 threads (measured)",
        "peak_lr 0.001 to 0.05, log scale",
        "thalweg compare adamw+cosine muon+wsd:decay=0.2 --seeds 3 --budget '600 steps'",
        "2.13.0",
        "The charts need JavaScript; the tables do not.",
    ):
        assert words in text, words


def test_charts_of_a_workload(comparison: ModuleType, parsed: Callable[[Any], Any]) -> None:
    def kinds(results: dict[str, Any]) -> list[str]:
        return [chart["id"] for chart in parsed(results).data()["charts"]]

    assert kinds(comparison.results()) == ["curves-0", "differences-0"]
    tuned = ["curves-0", "differences-0", "tuning-0-0", "tuning-0-1", "tuning-0-2"]
    assert kinds(comparison.results(tuned=True)) == tuned
    several = ["curves-0", "differences-0", "curves-1", "differences-1", "profile"]
    assert kinds(comparison.results(several=True)) == several


def test_planted_markup_is_text(comparison: ModuleType, parsed: Callable[[Any], Any]) -> None:
    page = parsed(comparison.hostile())
    own = [document.own_file("page.js"), document.own_file("comparison.js")]
    assert len(page.scripts) == 4
    assert page.scripts[2:] == own
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("title") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    # budget, command, created, names in several tables, errors, values
    assert page.text.count(comparison.SCRIPT) > 50
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_policy_allows_only_the_pages_scripts_and_nothing_is_fetched(
    comparison: ModuleType, parsed: Callable[[Any], Any]
) -> None:
    page = parsed(comparison.results(several=True, tuned=True))
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in policies[0].split(";"))
    scripts = (page.scripts[0], *page.scripts[2:])
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert directives["default-src"] == "'none'"
    assert directives["script-src"].split() == [f"'sha256-{value}'" for value in hashes]
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)


def test_size_and_repetition(comparison: ModuleType, tmp_path: Path) -> None:
    target = comparison_page.write(comparison.results(several=True, tuned=True), tmp_path / "report.html")
    first = target.read_bytes()
    assert 4_500_000 < len(first) < 5_200_000
    assert comparison_page.write(comparison.results(several=True, tuned=True), target).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("missing", ["curve", "noise", "speedup", "explanation", "difference", "peak_memory"])
def test_missing_keys_are_no_crash(comparison: ModuleType, parsed: Callable[[Any], Any], missing: str) -> None:
    results = comparison.results(tuned=True)
    for arm in results["workloads"][0]["arms"]:
        for entry in (arm, *arm["runs"]):
            entry.pop(missing, None)
    assert "6 arms compared" in parsed(results).text


def test_two_arms_give_a_title(comparison: ModuleType, parsed: Callable[[Any], Any]) -> None:
    results = comparison.results()
    results["workloads"][0]["arms"] = results["workloads"][0]["arms"][:2]
    assert "muon+wsd:decay=0.2 against adamw+cosine: Thalweg comparison" in parsed(results).text


def test_no_workload_is_said(parsed: Callable[[Any], Any]) -> None:
    text = parsed({"schema": 1, "workloads": []}).text
    assert "Nothing was compared." in text
    assert "The results record no command." in text


def test_importing_the_pages_is_light() -> None:
    code = (
        "import sys; from thalweg.reports import comparison_page, comparison_figures, comparison_table;"
        "print([n for n in ('torch', 'plotly', 'jinja2', 'matplotlib', 'rich', 'pandas') if n in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"
