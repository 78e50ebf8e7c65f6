"""What a comparison's charts draw, as plain numbers: for the page's script and for matplotlib.

A series belongs to an arm by its position in the workload's list (0 is the baseline), which also chooses its colour.
Runs that failed take no part in a mean; what they left is drawn apart.
"""

from __future__ import annotations

import numpy

from thalweg.reports import comparison_rows, formats
from thalweg.reports.comparison_rows import Table
from thalweg.reports.figures import AXES, rounded
from thalweg.reports.formats import MISSING, clean, finite
from thalweg.reports.pictures import PALETTE

GRID = 200
# The share of the way after which a curve is worth its height: before it every loss falls alike.
SETTLED = 0.15
Points = list[tuple[float, float]]


def colour(arm: int) -> int:
    """The place in PALETTE of an arm."""
    return arm if arm < len(PALETTE) else 1 + (arm - 1) % (len(PALETTE) - 1)


def _base(arm: Table, position: int) -> Table:
    return {
        "arm": position,
        "hue": colour(position),
        "dash": 0 if position == 0 else (position - 1) // (len(PALETTE) - 1),
        "name": clean(arm.get("name", MISSING)),
    }


def points(run: Table, axis: str) -> Points:
    """(position, bits per byte) of a run's held-out evaluations, forwards only."""
    curve = run.get("curve") or {}
    found: Points = []
    for at, value in zip(curve.get(axis) or [], curve.get("bits_per_byte") or [], strict=False):
        x, y = finite(at), finite(value)
        if x is not None and y is not None and (not found or x > found[-1][0]):
            found.append((x, y))
    return found


def mean_curve(runs: list[Points]) -> dict[str, list[float | None]]:
    """Mean, lowest and highest over seeds along one axis.

    With as many evaluations in every run, the first is averaged with the first, and so on (positions too: the same
    step comes after different seconds). Otherwise the curves are read off lines on a grid that all of them cover.
    """
    runs = [run for run in runs if run]
    if not runs:
        return {"x": [], "y": [], "low": [], "high": []}
    if len({len(run) for run in runs}) == 1:
        stacked = numpy.array(runs)
        grid, heights = stacked[:, :, 0].mean(axis=0), stacked[:, :, 1]
    else:
        begin, end = max(run[0][0] for run in runs), min(run[-1][0] for run in runs)
        inside = sorted({x for run in runs for x, _ in run if begin <= x <= end})
        grid = numpy.array(inside if len(inside) <= GRID else numpy.linspace(begin, end, GRID))
        heights = numpy.array([numpy.interp(grid, [x for x, _ in run], [y for _, y in run]) for run in runs])
    columns = {"x": grid, "y": heights.mean(axis=0), "low": heights.min(axis=0), "high": heights.max(axis=0)}
    return {name: [rounded(float(value)) for value in column] for name, column in columns.items()}


def curves(workload: Table) -> Table:
    """Held-out bits per byte over steps, tokens and seconds: a mean with its range an arm, failed runs apart."""
    series = []
    for position, arm in enumerate(comparison_rows.arms(workload)):
        runs = arm.get("runs") or []
        finished = [run for run in runs if run.get("status") == "finished"]
        along = {axis: mean_curve([points(run, axis) for run in finished]) for axis in AXES}
        failed = [
            {"seed": formats.spelled(run.get("seed")), **{axis: _columns(points(run, axis)) for axis in AXES}}
            for run in runs
            if run.get("status") != "finished"
        ]
        series.append({**_base(arm, position), "seeds": len(finished), "along": along, "failed": failed})
    drawn = [one for one in series if any(one["along"][axis]["x"] for axis in AXES) or _left(one["failed"])]
    return {"series": drawn, "focus": _focus(drawn), "summary": _spoken(drawn)}


def _columns(listed: Points) -> Table:
    return {"x": [rounded(x) for x, _ in listed], "y": [rounded(y) for _, y in listed]}


def _left(failed: list[Table]) -> bool:
    return any(run[axis]["x"] for run in failed for axis in AXES)


def _focus(series: list[Table]) -> list[float] | None:
    """The heights to look at first: what is below the fall of the first steps, and where every arm ended."""
    lows, settled = [], []
    for one in series:
        line = one["along"]["steps"]
        if line["x"]:
            after = [y for x, y in zip(line["x"], line["y"], strict=True) if x >= SETTLED * line["x"][-1]]
            lows.append(min(line["low"]))
            settled.append(max(after))
    if not lows:
        return None
    low, high = min(lows), max(settled)
    room = 0.04 * (high - low) or 0.01
    return [low - room, high + room]


def _spoken(series: list[Table]) -> str:
    ends = [
        f"{one['name']} ends at {one['along']['steps']['y'][-1]:.4f}" for one in series if one["along"]["steps"]["y"]
    ]
    return "Held-out bits per byte: " + ("; ".join(ends) or "nothing recorded") + "."


def differences(workload: Table) -> Table:
    """Each arm minus the baseline: the interval of the mean, a dot a seed, and the margin in bits per byte."""
    listed = comparison_rows.arms(workload)
    baseline = _finals(listed[0]) if listed else {}
    series = []
    for position, arm in enumerate(listed[1:], start=1):
        found = {key: rounded(finite((arm.get("difference") or {}).get(key))) for key in ("mean", "low", "high")}
        own = _finals(arm)
        pairs = [(seed, own[seed] - value) for seed, value in baseline.items() if seed in own]
        verdict = clean(arm.get("verdict") or MISSING)
        dots = {"seeds": [seed for seed, _ in pairs], "dots": [rounded(value) for _, value in pairs]}
        series.append({**_base(arm, position), **found, "verdict": verdict, **dots})
    spoken = [f"{one['name']} {one['mean']:+.4f}, {one['verdict']}" for one in series if one["mean"] is not None]
    return {"series": series, "summary": "Differences from the baseline: " + ("; ".join(spoken) or "none") + "."}


def margin(results: Table, workload: Table) -> float:
    """The margin of a tie in bits per byte."""
    listed = comparison_rows.arms(workload)
    mean = finite((listed[0].get("bits_per_byte") or {}).get("mean")) if listed else None
    return abs((finite(results.get("margin")) or 0.0) * (mean or 0.0))


def _finals(arm: Table) -> dict[str, float]:
    finals = {}
    for run in arm.get("runs") or []:
        bits = finite(run.get("bits_per_byte"))
        if run.get("status") == "finished" and bits is not None:
            finals[formats.spelled(run.get("seed"))] = bits
    return finals


def tuning(workload: Table) -> list[Table]:
    """A panel a searched value: bits per byte of every trial over it. Failed trials stand in `failed`, off the scale.

    Trials far above the others keep their number in `texts` and are drawn at `top`.
    """
    panels: dict[str, Table] = {}
    for position, arm in enumerate(comparison_rows.arms(workload)):
        best = comparison_rows.winner(arm)
        for name, limits in (arm.get("space") or {}).items():
            scale = limits.get("scale") if isinstance(limits, dict) else None
            panel = panels.setdefault(name, {"title": clean(name), "log": scale == "log", "series": []})
            trials = [trial for trial in arm.get("trials") or [] if name in (trial.get("values") or {})]
            panel["series"].append({**_base(arm, position), "trials": [_trial(t, name, t is best) for t in trials]})
    for panel in panels.values():
        trials = [trial for one in panel["series"] for trial in one["trials"]]
        panel["numeric"] = all(finite(trial["x"]) is not None for trial in trials)
        panel["log"] = panel["log"] and panel["numeric"] and all(trial["x"] > 0 for trial in trials)
        panel["top"] = _top([trial["y"] for trial in trials if trial["y"] is not None])
    return list(panels.values())


def _trial(trial: Table, name: str, won: bool) -> Table:
    value = trial["values"][name]
    number = finite(value)
    bits = rounded(finite(trial.get("bits_per_byte"))) if trial.get("status") == "finished" else None
    text = f"trial {formats.spelled(trial.get('number'))}: {comparison_rows.values(trial.get('values'))}"
    return {"x": formats.spelled(value) if number is None else rounded(number), "y": bits, "won": won, "text": text}


def _top(heights: list[float]) -> float | None:
    """As high as a panel goes: trials that diverged would press all the others flat."""
    if not heights:
        return None
    low, high = min(heights), max(heights)
    spread = float(numpy.median(heights)) - low
    return rounded(min(high, low + 4 * spread) if spread else high)


def profile(results: Table) -> Table | None:
    """The performance profile: the share of workloads on which an arm is within a factor tau of the fastest."""
    found = results.get("profile")
    if not isinstance(found, dict) or not found.get("taus"):
        return None
    first = comparison_rows.workloads(results)[:1]
    listed = [clean(arm.get("name", MISSING)) for workload in first for arm in comparison_rows.arms(workload)]
    series: list[Table] = []
    for name, shares in (found.get("arms") or {}).items():
        position = listed.index(clean(name)) if clean(name) in listed else len(series)
        score = (found.get("scores") or {}).get(name)
        drawn = [rounded(finite(share)) for share in shares]
        series.append({**_base({"name": name}, position), "y": drawn, "score": formats.significant(score, 3)})
    return {"x": [rounded(finite(tau)) for tau in found["taus"]], "series": series}
