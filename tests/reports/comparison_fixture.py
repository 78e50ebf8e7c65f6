"""Made-up results of a comparison in the real format: what results.json holds.

Numbers hang together: differences, intervals and relative values are those of the runs.
"""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

SCRIPT = '<script>document.title="owned"</script>'
IMAGE = "<img src=x onerror=\"document.title='owned'\">"
SEEDS = (0, 1, 2)
T_TWO = 4.302653  # Student's t, two degrees of freedom, 97.5 %
STEPS = 600
EVALUATIONS = 12


def curve(final: float, step_seconds: float, until: float = 1.0) -> dict[str, list[float]]:
    """Held-out evaluations of a power law that ends at `final`."""
    steps = [round(STEPS * n / EVALUATIONS) for n in range(1, EVALUATIONS + 1) if n / EVALUATIONS <= until]
    fall = [final + 3.2 * ((1 + step / 20) ** -0.7 - (1 + STEPS / 20) ** -0.7) for step in steps]
    return {
        "steps": [float(step) for step in steps],
        "tokens": [step * 4096.0 for step in steps],
        "seconds": [round(2 + step * step_seconds, 3) for step in steps],
        "bits_per_byte": fall,
    }


def run(name: str, seed: int, final: float, step_seconds: float, error: str | None = None) -> dict[str, Any]:
    failed = error is not None
    return {
        "seed": seed,
        "status": "failed" if failed else "finished",
        "error": error,
        "run": f"runs/compared/{name[:5]}{seed}",
        "reused": seed == 0 and not failed,
        "bits_per_byte": None if failed else final,
        "loss": None if failed else final * math.log(2) * 3.1,
        "steps": 250 if failed else STEPS,
        "tokens": (250 if failed else STEPS) * 4096,
        "seconds": 61.2,
        "training_seconds": 55.0,
        "step_seconds": step_seconds,
        "peak_memory": 812_000_000,
        "skipped": 0,
        "curve": curve(final, step_seconds + seed * 0.004, 0.4 if failed else 1.0),
    }


def interval(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None, "sd": None, "n": 1}
    deviation = statistics.stdev(values)
    half = T_TWO * deviation / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": deviation, "n": len(values)}


def arm(
    name: str,
    finals: list[float],
    baseline: list[float] | None,
    verdict: str,
    step_seconds: float = 0.09,
    **changes: Any,
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "arm": name + "+cross_entropy",
        "peak_lr": 0.007,
        "weight_decay": 0.1,
        "space": None,
        "trials": [],
        "winner": None,
        "runs": [run(name, seed, final, step_seconds) for seed, final in zip(SEEDS, finals, strict=False)],
        "bits_per_byte": interval(finals),
        "difference": None,
        "verdict": verdict,
        "explanation": "",
        "more_seeds": None,
        "speedup": None,
        "reached": {"steps": None, "tokens": None, "seconds": None},
        "overhead": None,
        "peak_memory": 812_000_000,
        "skipped": 0,
        "failures": 0,
        "noise": {"seed_sd": 0.0031, "monotonicity": 0.97, "signal_to_noise": 12.5},
    }
    if baseline is not None:
        found = interval([own - other for own, other in zip(finals, baseline, strict=False)])
        relative = found["mean"] / statistics.fmean(baseline)
        made["difference"] = {**found, "relative": relative, "p_t": 0.004, "p_permutation": 0.25, "p_holm": 0.012}
        made["overhead"] = step_seconds / 0.09 - 1
        made["speedup"] = {"steps": None, "tokens": None, "seconds": None}
    return {**made, **changes}


def trials(centre: float, best: float, extra: str) -> list[dict[str, Any]]:
    """Six trials around a best rate: one diverges, one fails."""
    made = []
    for number in range(6):
        rate = 0.001 * 2.2**number
        bits = best + 0.02 * math.log(rate / centre) ** 2 + (4.0 if number == 5 else 0.0)
        values = {"peak_lr": rate, "weight_decay": (0.0, 0.05, 0.1, 0.2, 0.1, 0.05)[number]}
        if extra:
            values[extra] = 0.1 + 0.1 * number
        failed = number == 4
        made.append(
            {
                "number": number,
                "values": values,
                "bits_per_byte": None if failed else bits,
                "status": "failed" if failed else "finished",
                "error": "the loss was not finite for 20 steps" if failed else None,
                "run": f"runs/compared/trial{number}",
            }
        )
    return made


def space(extra: str) -> dict[str, Any]:
    limits: dict[str, Any] = {
        "peak_lr": {"type": "float", "low": 0.001, "high": 0.05, "scale": "log"},
        "weight_decay": {"type": "float", "low": 0.0, "high": 0.2, "scale": "linear"},
    }
    return {**limits, extra: {"type": "float", "low": 0.05, "high": 0.9, "scale": "linear"}} if extra else limits


def workload(model: str, shift: float = 0.0, tuned: bool = False) -> dict[str, Any]:
    noise = random.Random(model)
    ground = [2.02 + shift + noise.gauss(0, 0.006) for _ in SEEDS]

    def near(difference: float, spread: float) -> list[float]:
        return [value + difference + noise.gauss(0, spread) for value in ground]

    listed = [
        arm("adamw+cosine", ground, None, "baseline"),
        arm(
            "muon+wsd:decay=0.2", near(-0.061, 0.002), ground, "better", 0.0985,
            explanation="lower by 0.0610 (0.0560 to 0.0660), p = 0.012",
            speedup={"steps": 1.31, "tokens": 1.31, "seconds": 1.2},
        ),
        arm(
            "adamw+cosine+z_loss", near(0.0002, 0.0004), ground, "tied", 0.0905,
            explanation="the interval lies within the margin of 0.0040",
            speedup={"steps": 1.0, "tokens": 1.0, "seconds": None},
        ),
        arm(
            "adamw+linear", near(-0.005, 0.009), ground, "undecided",
            explanation="lower by 0.0050 (-0.0174 to 0.0274), too few seeds to tell", more_seeds=9,
        ),
        arm("adamw+constant", near(0.048, 0.004), ground, "worse", explanation="higher by 0.0480 (0.0380 to 0.0580)"),
        arm(
            "muon+constant", [], None, "failed", bits_per_byte=None, peak_memory=None, skipped=41, failures=3,
            explanation="no seed finished",
            runs=[run("mcon", seed, 3.4, 0.098, "the loss was not finite for 20 steps") for seed in SEEDS],
        ),
    ]  # fmt: skip
    for one, extra in zip(listed[:2], ("", "wsd:decay"), strict=True):
        if tuned:
            tried = trials(0.005 if extra else 0.004, one["bits_per_byte"]["mean"], extra)
            won = min((t for t in tried if t["bits_per_byte"] is not None), key=lambda t: t["bits_per_byte"])
            one |= {"space": space(extra), "trials": tried, "winner": won["number"]}
    setting = {"parameters": 1_100_000, "context": 256, "batch_size": 16, "precision": "float32", "steps": STEPS}
    return {
        "name": f"model={model},corpus=stdlib",
        "model": model,
        "corpus": "stdlib",
        "budget": "600 steps",
        "setting": {**setting, "tokens": STEPS * 4096, "vocab_size": 4096},
        "arms": listed,
    }


def results(*, several: bool = False, tuned: bool = False) -> dict[str, Any]:
    """A whole comparison of six arms, on one workload or two."""
    listed = [workload("1M", tuned=tuned)] + ([workload("0.5M", 0.2, tuned)] if several else [])
    names = [one["name"] for one in listed[0]["arms"]]
    profile = None
    if several:
        shares = {name: [1.0 if tau > 1.4 + n / 10 else 0.5 if tau > 1.1 else 0.0 for tau in taus()]
                  for n, name in enumerate(names)}  # fmt: skip
        profile = {"taus": taus(), "arms": shares, "scores": {name: 0.9 - n / 10 for n, name in enumerate(names)}}
    reason = "2 runs at a time, a thread each: 1.5 times the tokens/s of one run with 2 threads (measured)"
    return {
        "schema": 1,
        "command": "thalweg compare adamw+cosine muon+wsd:decay=0.2 --seeds 3 --budget '600 steps'",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"thalweg": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "machine": {"cpu": "two cores", "peak_flops": 1.2e11},
        "execution": {"on": "local", "slots": 2, "threads": 1, "reason": reason},
        "budget": "600 steps",
        "seeds": list(SEEDS),
        "margin": 0.002,
        "warnings": ["a budget in seconds: the machine's noise enters"],
        "tuning": {"trials": 6, "sampler": "qmc", "seeds": [1000000]} if tuned else None,
        "workloads": listed,
        "profile": profile,
    }


def taus() -> list[float]:
    return [1 + n / 20 for n in range(61)]


def hostile() -> dict[str, Any]:
    """Names, errors and everything else that a user or a file may have written, as attacks."""
    made = results(several=True, tuned=True)
    made |= {"warnings": [IMAGE], "command": f"thalweg compare {SCRIPT}", "created": SCRIPT, "budget": SCRIPT}
    made["execution"]["reason"] = IMAGE
    for one in made["workloads"]:
        one["name"] = f"{IMAGE} | `x` {SCRIPT}"
        for number, entry in enumerate(one["arms"]):
            entry["name"] = f"{SCRIPT}|`{number}`[bold]$x$\x1b[31m{IMAGE}"
            entry["explanation"] = entry["verdict"] + IMAGE
            for which in entry["runs"] + entry["trials"]:
                which["error"] = which["error"] and f"{SCRIPT}\u202e"
            for trial in entry["trials"]:
                trial["values"][IMAGE] = SCRIPT
        one["arms"][0]["space"][IMAGE] = {"type": "choice", "choices": [SCRIPT]}
        one["arms"][1]["verdict"] = '"><script>document.title="owned"</script>'
    return made
