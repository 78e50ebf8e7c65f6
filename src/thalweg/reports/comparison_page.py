"""A comparison as one HTML file (how it is kept safe and self-contained: `reports.document`).

The tables say everything without a script; the charts and the sorting of the tables need one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thalweg.reports import comparison_rows, comparison_series, document, formats, pictures
from thalweg.reports.comparison_rows import TITLES, Table
from thalweg.reports.formats import clean
from thalweg.runs import write_text

# The verdict stands beside the name: on a narrow screen the table is cut off on the right.
COLUMNS = ("arm", "verdict", *(column for column in TITLES if column not in ("arm", "verdict")))


def write(results: Table, path: str | Path) -> Path:
    """Write the page of a comparison and return its path.

    Args:
        results: what results.json holds.
        path: the file, such as runs/compared/report.html; replaced atomically.
    """
    path = Path(path)
    write_text(path, render(results))
    return path


def render(results: Table) -> str:
    """The whole page as text."""
    described = [_workload(results, workload, n) for n, workload in enumerate(comparison_rows.workloads(results))]
    profile = comparison_series.profile(results)
    charts = [chart for workload in described for chart in workload["charts"]]
    if profile:
        charts.append({"id": "profile", "kind": "profile", **profile})
    return document.fill(
        "comparison",
        {"charts": charts},
        head=_headline(results, described),
        workloads=described,
        columns=[(column, TITLES[column]) for column in COLUMNS],
        run_titles=comparison_rows.RUN_TITLES,
        profile=_profile_table(profile),
        palette=pictures.PALETTE,
        warnings=[clean(warning) for warning in results.get("warnings") or []],
        setting=comparison_rows.setting(results),
        surroundings=_surroundings(results),
        command=clean(formats.command_line(results.get("command"))),
    )


def _headline(results: Table, described: list[Table]) -> dict[str, Any]:
    names = [arm["name"] for workload in described[:1] for arm in workload["legend"]]
    return {
        "title": f"{len(names)} arms compared" if len(names) != 2 else f"{names[1]} against {names[0]}",
        "budget": clean(results.get("budget") or ""),
        "seeds": len(results.get("seeds") or []),
        "created": clean(results.get("created") or ""),
        "several": len(described) > 1,
    }


def _workload(results: Table, workload: Table, number: int) -> dict[str, Any]:
    """What the template shows of a workload, and its charts."""
    curves, differences = comparison_series.curves(workload), comparison_series.differences(workload)
    panels = comparison_series.tuning(workload)
    margin = comparison_series.margin(results, workload)
    charts: list[Table] = []
    if curves["series"]:
        charts.append({"id": f"curves-{number}", "kind": "curves", **curves})
    if differences["series"]:
        charts.append({"id": f"differences-{number}", "kind": "differences", "margin": margin, **differences})
    charts += [{"id": f"tuning-{number}-{n}", "kind": "tuning", **panel} for n, panel in enumerate(panels)]
    listed = comparison_rows.arms(workload)
    return {
        "number": number,
        "name": clean(workload.get("name") or "workload"),
        "answer": comparison_rows.answer(workload),
        "rows": comparison_rows.rows(workload),
        "failures": comparison_rows.failures(workload),
        "runs": comparison_rows.runs(workload),
        "tuned": comparison_rows.tuned(workload),
        "noise": comparison_rows.noise(workload),
        "setting": formats.flattened(workload.get("setting") or {}),
        "rates": comparison_rows.rates(workload),
        "legend": [{"name": clean(arm.get("name", formats.MISSING))} for arm in listed],
        "margin": formats.significant(margin, 3) if margin else "",
        "charts": charts,
        "kinds": {chart["kind"] for chart in charts},
        "panels": [chart for chart in charts if chart["kind"] == "tuning"],
        "summaries": {"curves": curves["summary"], "differences": differences["summary"]},
        # Rows are two lines of text high, whatever the number of arms.
        "height": 5 + 3.25 * len(differences["series"]),
    }


def _profile_table(profile: Table | None) -> Table | None:
    """The profile without a chart: scores, and the shares at about six factors."""
    if profile is None:
        return None
    last = len(profile["x"]) - 1
    chosen = sorted({round(last * part / 5) for part in range(6)})
    rows = [
        (one["name"], one["score"], [formats.significant(one["y"][at], 3) for at in chosen if at < len(one["y"])])
        for one in profile["series"]
    ]
    return {"taus": [formats.significant(profile["x"][at], 3) for at in chosen], "rows": rows}


def _surroundings(results: Table) -> list[tuple[str, list[tuple[str, str]]]]:
    titled = (("Execution", "execution"), ("Versions", "versions"), ("Machine", "machine"))
    return [(title, formats.flattened(results[key])) for title, key in titled if isinstance(results.get(key), dict)]
