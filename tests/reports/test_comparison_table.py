"""A comparison as Markdown and in a terminal."""

from __future__ import annotations

import io
import re
from types import ModuleType
from typing import Any

import pytest

from thalweg.reports import comparison_rows, comparison_table


def in_terminal(results: dict[str, Any], width: int = 80) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    console.print(comparison_table.rich(results))
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(markdown: str, beginning: str) -> list[str]:
    """The cells of the first table row that begins so."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_row_has_the_numbers(comparison: ModuleType) -> None:
    results = comparison.results()
    markdown = comparison_table.markdown(results)
    arm = results["workloads"][0]["arms"][1]
    bits, difference = arm["bits_per_byte"], arm["difference"]
    assert cells(markdown, "arm |") == list(comparison_rows.TITLES.values())
    assert cells(markdown, "`muon+wsd") == [
        "`muon+wsd:decay=0.2`",
        f"{bits['mean']:.4f} ({bits['low']:.4f} to {bits['high']:.4f})",
        f"{difference['mean']:+.4f} ({100 * difference['relative']:+.2f} %, "
        f"{difference['low']:+.4f} to {difference['high']:+.4f})",
        "0.012", "1.31× (1.20× in time)", "+9.4 %", "774 MiB", "3 of 3", "**better**",
    ]  # fmt: skip
    assert cells(markdown, "`adamw+linear`")[-1] == "**undecided** (9 more seeds may decide)"
    assert cells(markdown, "`muon+constant`")[1:] == [
        *["—"] * 6, "0 of 3 (3 failed, 41 steps skipped)", "**failed**"
    ]  # fmt: skip


def test_markdown_says_setting_warnings_failures_and_tuning(comparison: ModuleType) -> None:
    markdown = comparison_table.markdown(comparison.results(tuned=True))
    assert "> Warning: a budget in seconds: the machine's noise enters" in markdown
    assert "| margin of a tie | 0.2 % of the baseline's bits per byte |" in markdown
    assert "6 trials an arm, sampler qmc, on seeds 1000000 that take no part in the comparison" in markdown
    assert "Against adamw+cosine: 1 better, 1 tied, 1 undecided, 1 worse, 1 failed." in markdown
    assert "- `muon+constant`, seeds 0, 1, 2: the loss was not finite for 20 steps" in markdown
    assert "was tuned with 6 trials, 1 of them failed; winner: peak\\_lr = 0.00484, weight\\_decay = 0.1" in markdown
    assert "- `wsd:decay` from 0.05 to 0.9" in markdown
    assert "- `peak_lr` from 0.001 to 0.05, log scale" in markdown
    assert cells(markdown, "`adamw+cosine` | 0.0031") == ["`adamw+cosine`", "0.0031", "0.97", "12.5"]


def test_two_workloads_have_two_tables_and_a_profile(comparison: ModuleType) -> None:
    markdown = comparison_table.markdown(comparison.results(several=True))
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == [
        "model=1M,corpus=stdlib", "model=0.5M,corpus=stdlib", "Performance profile"
    ]  # fmt: skip
    assert cells(markdown, "`adamw+cosine` | 0.9") == ["`adamw+cosine`", "0.9"]


def test_hostile_text_is_text_in_markdown(comparison: ModuleType) -> None:
    markdown = comparison_table.markdown(comparison.hostile())
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"\\.", "", markdown))
    assert "<" not in outside
    assert "&lt;img src=x" in markdown
    assert "\x1b" not in markdown
    # Every row has as many cells as its head.
    for head, row in re.findall(r"^(\| arm .*)\n\|[-|]+\n(\| .*)", markdown, re.MULTILINE):
        assert len(re.split(r"(?<!\\)\|", row)) == len(re.split(r"(?<!\\)\|", head))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b*c", "a\\_b\\*c"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("x\n# y | z", "x # y \\| z"),
        ("`[a](b)`", "\\`\\[a\\](b)\\`"),
    ],
)
def test_escaping(text: str, expected: str) -> None:
    assert comparison_table.escaped(text) == expected


def test_names_as_code() -> None:
    assert comparison_table.code("a+b:c=d|e") == "`a+b:c=d\\|e`"
    assert comparison_table.code("a`b") == "a\\`b"


def test_terminal_of_80_columns_shows_whole_numbers(comparison: ModuleType) -> None:
    results = comparison.results(tuned=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", in_terminal(results))
    assert max(map(len, text.splitlines())) <= 80
    arm = results["workloads"][0]["arms"][1]
    row = next(line for line in text.splitlines() if line.startswith("muon+wsd:decay=0.2 "))
    assert row.split() == [
        "muon+wsd:decay=0.2", f"{arm['bits_per_byte']['mean']:.4f}", f"{arm['difference']['mean']:+.4f}",
        "1.31×", "+9.4", "%", "better",
    ]  # fmt: skip
    half = (arm["difference"]["high"] - arm["difference"]["low"]) / 2
    assert f"±{half:.4f}" in text
    assert "muon+constant, seeds 0, 1, 2 failed: the loss was not finite for 20 steps" in text


def test_hostile_text_is_text_in_a_terminal(comparison: ModuleType) -> None:
    text = in_terminal(comparison.hostile(), width=400)
    assert "[bold]$x$␛[31m" in text
    assert "\x1b[31m<img" not in text


def test_one_seed_has_no_interval(comparison: ModuleType) -> None:
    results = comparison.results()
    alone = {"mean": 2.0, "low": None, "high": None, "sd": None, "n": 1}
    arm = results["workloads"][0]["arms"][1]
    arm |= {"bits_per_byte": alone, "difference": {**alone, "mean": -0.02, "relative": -0.01, "p_holm": None}}
    row = comparison_rows.rows(results["workloads"][0])[1].cells
    assert (row["bits"].text, row["bits"].note) == ("2.0000", "one seed")
    assert (row["difference"].text, row["difference"].note, row["p"].text) == ("-0.0200", "-1.00 %", "—")
    assert "±" not in next(line for line in in_terminal(results).splitlines() if "muon+wsd" in line)


def test_nothing_compared_is_said() -> None:
    assert comparison_rows.answer({"arms": []}) == "Nothing was compared."
    assert comparison_table.markdown({"workloads": []}).startswith("# Comparison")


def test_what_was_searched_is_said() -> None:
    limits = {"a": {"type": "int", "low": 1, "high": 64, "scale": "log"}, "b": {"type": "str", "choices": ["x", "y"]}}
    assert comparison_rows.space({"space": limits}) == [("a", "1 to 64, log scale"), ("b", "one of x, y")]
    assert comparison_rows.space({"space": None}) == []
