"""A comparison's tables as text: the same cells for the page, for table.md and for the terminal.

Everything here is text and numbers; foreign text is cleaned (`formats.clean`), and escaped by whoever writes it down.
The results are the dict that results.json holds, written by the arena; a key that is missing reads like null.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thalweg.reports import formats
from thalweg.reports.formats import MISSING, clean, finite

Table = dict[str, Any]
# Best news first: what sorting by verdict means.
VERDICTS = ("better", "tied", "undecided", "worse", "failed", "baseline")
TITLES = {
    "arm": "arm",
    "bits": "bits per byte",
    "difference": "difference",
    "p": "p (Holm)",
    "speedup": "speed-up",
    "overhead": "step time",
    "memory": "peak memory",
    "runs": "runs",
    "verdict": "verdict",
}


@dataclass(frozen=True)
class Cell:
    """What a cell says, what stands small beside it (in lines), and the number to sort by (None: last)."""

    text: str
    note: str = ""
    order: float | None = None


@dataclass(frozen=True)
class Row:
    """An arm: its cells by column, its verdict, the sentence behind it."""

    cells: dict[str, Cell]
    verdict: str
    explanation: str


def workloads(results: Table) -> list[Table]:
    return [workload for workload in results.get("workloads") or [] if isinstance(workload, dict)]


def arms(workload: Table) -> list[Table]:
    return [arm for arm in workload.get("arms") or [] if isinstance(arm, dict)]


def within(low: Any, high: Any, sign: bool = False) -> str:
    """ "1.8120 to 1.8710", or "" where an end is missing."""
    if finite(low) is None or finite(high) is None:
        return ""
    return f"{low:+.4f} to {high:+.4f}" if sign else f"{low:.4f} to {high:.4f}"


def rows(workload: Table) -> list[Row]:
    """A row an arm, in the order of the comparison."""
    return [_row(arm, position) for position, arm in enumerate(arms(workload))]


def _row(arm: Table, position: int) -> Row:
    verdict = clean(arm.get("verdict") or MISSING)
    rank = float(VERDICTS.index(verdict)) if verdict in VERDICTS else None
    cells = {
        "arm": Cell(clean(arm.get("name", MISSING)), "", float(position)),
        "bits": _bits(arm.get("bits_per_byte") or {}),
        "difference": _difference(arm.get("difference") or {}),
        "p": _probability((arm.get("difference") or {}).get("p_holm")),
        "speedup": _speedup(arm),
        "overhead": Cell(formats.percent(arm.get("overhead"), sign=True), "", finite(arm.get("overhead"))),
        "memory": Cell(formats.memory(arm.get("peak_memory")), "", finite(arm.get("peak_memory"))),
        "runs": _runs(arm),
        "verdict": Cell(verdict, _more_seeds(arm), rank),
    }
    return Row(cells, verdict, clean(arm.get("explanation") or ""))


def _bits(interval: Table) -> Cell:
    mean = finite(interval.get("mean"))
    note = within(interval.get("low"), interval.get("high")) or ("one seed" if interval.get("n") == 1 else "")
    return Cell(formats.fixed(mean), note, mean)


def _difference(difference: Table) -> Cell:
    mean, relative = finite(difference.get("mean")), finite(difference.get("relative"))
    if mean is None:
        return Cell(MISSING)
    share = "" if relative is None else f"{100 * relative:+.2f} %"
    notes = [share, within(difference.get("low"), difference.get("high"), sign=True)]
    return Cell(f"{mean:+.4f}", "\n".join(note for note in notes if note), mean)


def _probability(value: Any) -> Cell:
    number = finite(value)
    if number is None:
        return Cell(MISSING)
    return Cell("under 0.001" if number < 0.001 else formats.significant(number, 2), "", number)


def _speedup(arm: Table) -> Cell:
    if not isinstance(arm.get("speedup"), dict):
        return Cell(MISSING)
    found = {axis: finite(arm["speedup"].get(axis)) for axis in ("steps", "tokens", "seconds")}
    if all(value is None for value in found.values()):
        return Cell("not reached")
    spelled = {axis: "not reached" if value is None else f"{value:.2f}×" for axis, value in found.items()}
    return Cell(spelled["steps"], f"{spelled['seconds']} in time", found["steps"])


def _runs(arm: Table) -> Cell:
    runs = [run for run in arm.get("runs") or [] if isinstance(run, dict)]
    finished = sum(run.get("status") == "finished" for run in runs)
    notes = [f"{len(runs) - finished} failed"] if finished < len(runs) else []
    if finite(arm.get("skipped")):
        notes.append(f"{formats.whole(arm['skipped'])} steps skipped")
    return Cell(f"{finished} of {len(runs)}", "\n".join(notes), float(finished))


def _more_seeds(arm: Table) -> str:
    seeds = finite(arm.get("more_seeds"))
    if seeds is None or arm.get("verdict") != "undecided":
        return ""
    return f"{seeds:.0f} more {'seed' if seeds == 1 else 'seeds'} may decide"


def answer(workload: Table) -> str:
    """The outcome in a sentence: against what, and how many arms came out how."""
    listed = arms(workload)
    if not listed:
        return "Nothing was compared."
    words = [clean(arm.get("verdict") or MISSING) for arm in listed[1:]]
    counts = [f"{words.count(word)} {word}" for word in VERDICTS if word in words]
    outcome = ", ".join(counts) if counts else "nothing to compare with it"
    sentence = f"Against {clean(listed[0].get('name', MISSING))}: {outcome}."
    means = [(finite((arm.get("bits_per_byte") or {}).get("mean")), arm) for arm in listed]
    measured = [(mean, clean(arm.get("name", MISSING))) for mean, arm in means if mean is not None]
    if measured:
        mean, name = min(measured)
        sentence += f" Lowest: {name}, {mean:.4f} bits per byte."
    return sentence


def failures(workload: Table) -> list[tuple[str, str, str]]:
    """(arm, which seeds, the error) for the runs that failed; seeds with the same error together."""
    found: dict[tuple[str, str], list[str]] = {}
    for arm in arms(workload):
        for run in arm.get("runs") or []:
            if run.get("status") != "finished":
                error = clean(run.get("error") or "no reason is recorded")
                found.setdefault((clean(arm.get("name", MISSING)), error), []).append(formats.spelled(run.get("seed")))
    return [
        (arm, f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}", error)
        for (arm, error), seeds in found.items()
    ]


def runs(workload: Table) -> list[tuple[bool, list[Cell]]]:
    """A row a run, with whether it finished; the cells are those of RUN_TITLES."""
    listed: list[tuple[bool, list[Cell]]] = []
    for arm in arms(workload):
        for run in arm.get("runs") or []:
            finished, step = run.get("status") == "finished", finite(run.get("step_seconds"))
            bits = finite(run.get("bits_per_byte")) if finished else None
            row = [
                Cell(clean(arm.get("name", MISSING)), "", float(len(listed))),
                Cell(formats.spelled(run.get("seed")), "", finite(run.get("seed"))),
                Cell(formats.fixed(bits) if finished else "failed", "", bits),
                Cell(formats.fixed(run.get("loss")), "", finite(run.get("loss"))),
                Cell(formats.whole(run.get("steps")), "", finite(run.get("steps"))),
                Cell(formats.amount(run.get("tokens")), "", finite(run.get("tokens"))),
                Cell(formats.duration(run.get("seconds")), "", finite(run.get("seconds"))),
                Cell(MISSING if step is None else f"{formats.significant(1000 * step, 3)} ms", "", step),
                Cell(clean(run.get("run") or MISSING) + (" (reused)" if run.get("reused") else ""), "", len(listed)),
            ]
            listed.append((finished, row))
    return listed


RUN_TITLES = ("arm", "seed", "bits per byte", "loss", "steps", "tokens", "time", "step", "folder")


def values(named: Any) -> str:
    """ "peak_lr = 0.007, weight_decay = 0.1"."""
    if not isinstance(named, dict):
        return MISSING
    return ", ".join(f"{clean(name)} = {_value(value)}" for name, value in named.items()) or MISSING


def _value(value: Any) -> str:
    return formats.significant(value, 4) if isinstance(value, float) else formats.spelled(value)


def space(arm: Table) -> list[tuple[str, str]]:
    """What was searched: ("peak_lr", "0.0005 to 0.05, log scale")."""
    found = []
    for name, limits in (arm.get("space") or {}).items():
        if not isinstance(limits, dict):
            text = formats.spelled(limits)
        elif "low" in limits:
            text = f"{_value(limits['low'])} to {_value(limits.get('high'))}"
            text += ", log scale" if limits.get("scale") == "log" else ""
        else:
            text = "one of " + formats.spelled(limits.get("choices") or [])
        found.append((clean(name), text))
    return found


def winner(arm: Table) -> Table | None:
    """The trial that won."""
    for trial in arm.get("trials") or []:
        if arm.get("winner") is not None and trial.get("number") == arm["winner"]:
            return trial
    return None


def tuned(workload: Table) -> list[Table]:
    """The arms that were searched for, as what the pages show of it."""
    found = []
    for arm in arms(workload):
        if not arm.get("trials"):
            continue
        best = winner(arm)
        trials = [
            {
                "number": formats.spelled(trial.get("number")),
                "values": values(trial.get("values")),
                "bits": formats.fixed(trial.get("bits_per_byte")) if trial.get("status") == "finished" else "failed",
                "error": clean(trial.get("error") or ""),
                "won": trial is best,
                "failed": trial.get("status") != "finished",
            }
            for trial in arm["trials"]
        ]
        found.append(
            {
                "name": clean(arm.get("name", MISSING)),
                "winner": values((best or {}).get("values")),
                "bits": formats.fixed((best or {}).get("bits_per_byte")),
                "space": space(arm),
                "trials": trials,
            }
        )
    return found


def rates(workload: Table) -> list[tuple[str, ...]]:
    """What each arm trained with: its name, its canonical spelling, peak rate, weight decay."""
    return [
        (
            clean(arm.get("name", MISSING)),
            clean(arm.get("arm") or MISSING),
            formats.significant(arm.get("peak_lr")),
            formats.significant(arm.get("weight_decay")),
        )
        for arm in arms(workload)
    ]


def noise(workload: Table) -> list[tuple[str, ...]]:
    """How steady the measure is: arm, standard deviation over seeds, monotonicity, signal to noise."""
    found = []
    for arm in arms(workload):
        measured = arm.get("noise") or {}
        keys = ("seed_sd", "monotonicity", "signal_to_noise")
        if any(finite(measured.get(key)) is not None for key in keys):
            found.append(
                (clean(arm.get("name", MISSING)), *(formats.significant(measured.get(key), 3) for key in keys))
            )
    return found


def setting(results: Table) -> list[tuple[str, str]]:
    """What every arm had alike."""
    tuning = results.get("tuning")
    found = [
        ("budget", formats.spelled(results.get("budget"))),
        ("seeds", _seeds(results.get("seeds"))),
        ("margin of a tie", formats.percent(results.get("margin")) + " of the baseline's bits per byte"),
        ("tuning", "none: each arm's own defaults"),
    ]
    if isinstance(tuning, dict):
        sampler, drawn = clean(tuning.get("sampler") or MISSING), _seeds(tuning.get("seeds"))
        text = f"{formats.spelled(tuning.get('trials'))} trials an arm, sampler {sampler}, on seeds {drawn}"
        found[-1] = ("tuning", text + " that take no part in the comparison")
    reason = (results.get("execution") or {}).get("reason")
    return [*found, ("execution", clean(reason))] if reason else found


def _seeds(seeds: Any) -> str:
    """Seeds are names rather than amounts: no grouped digits."""
    return ", ".join(clean(seed) for seed in seeds or []) or MISSING
