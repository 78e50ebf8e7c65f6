"""From runs to verdicts, on runs made up by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from thalweg.arena.assess import assess, crossing, performance_profile


def arm(name: str, finals: list[float | None], curve: list[float] | None = None, step: float = 0.1) -> dict[str, Any]:
    """An arm whose runs end at these values after falling along `curve` (its last value replaced)."""
    runs = []
    for seed, final in enumerate(finals):
        run: dict[str, Any] = {"seed": seed, "status": "finished" if final else "failed", "error": None, "run": "r"}
        if final is None:
            run |= {"error": "diverged", "bits_per_byte": None}
        else:
            values = [*(curve or [4.0, 3.0, 2.5, 2.2])[:-1], final]
            places = [100 * (index + 1) for index in range(len(values))]
            run |= {
                "bits_per_byte": final,
                "step_seconds": step,
                "peak_memory": 1000 + seed,
                "skipped": seed,
                "curve": {
                    "steps": places,
                    "tokens": [10 * place for place in places],
                    "seconds": [step * place for place in places],
                    "bits_per_byte": values,
                },
            }
        runs.append(run)
    return {"name": name, "runs": runs}


def test_a_clear_gain():
    arms = [arm("base", [2.00, 2.02, 1.98]), arm("new", [1.90, 1.92, 1.885], [3.8, 2.6, 2.0, 0.0], step=0.11)]
    assess(arms, margin=0.002)
    new = arms[1]
    assert arms[0]["verdict"] == "baseline"
    assert new["verdict"] == "better"
    assert new["difference"]["mean"] == pytest.approx(-0.098333, abs=1e-6)
    assert new["difference"]["relative"] == pytest.approx(-0.098333 / 2, abs=1e-6)
    assert new["difference"]["p_holm"] == new["difference"]["p_t"]
    assert new["bits_per_byte"]["mean"] == pytest.approx((1.90 + 1.92 + 1.885) / 3)
    # Seed 0 meets 2.00 at step 300 exactly; seed 1 meets 2.02 on the way from 2.6 to 2.0; seed 2 after step 300.
    assert new["reached"]["steps"] == pytest.approx(300.0)
    assert new["speedup"]["steps"] == pytest.approx(400 / 300)
    assert new["speedup"]["tokens"] == pytest.approx(400 / 300)
    assert new["speedup"]["seconds"] == pytest.approx(400 * 0.1 / (300 * 0.11))
    assert new["overhead"] == pytest.approx(0.1)
    assert new["peak_memory"] == 1002
    assert new["skipped"] == 3
    assert new["noise"]["monotonicity"] == 1.0


def test_the_same_arm_is_tied_and_holm_is_applied_over_arms():
    finals = [2.00, 2.02, 1.98]
    arms = [arm("base", finals), arm("same", finals), arm("worse", [2.1, 2.15, 2.06])]
    assess(arms, margin=0.0)
    assert [found["verdict"] for found in arms] == ["baseline", "tied", "worse"]
    assert arms[1]["difference"]["mean"] == 0.0
    assert arms[2]["difference"]["p_holm"] == pytest.approx(2 * arms[2]["difference"]["p_t"])
    assert arms[2]["speedup"] == {"steps": None, "tokens": None, "seconds": None}


def test_a_failed_seed_fails_the_arm_and_no_other():
    arms = [arm("base", [2.00, 2.02, 1.98]), arm("bad", [1.9, None, 1.9]), arm("new", [1.90, 1.92, 1.885])]
    assess(arms, margin=0.0)
    assert [found["verdict"] for found in arms] == ["baseline", "failed", "better"]
    assert arms[1]["explanation"] == "seed 1: diverged"
    assert arms[1]["failures"] == 1
    assert arms[1]["bits_per_byte"]["n"] == 2


def test_a_failed_baseline_leaves_nothing_to_compare_with():
    arms = [arm("base", [None, None]), arm("new", [1.9, 1.9])]
    assess(arms, margin=0.0)
    assert [found["verdict"] for found in arms] == ["failed", "failed"]
    assert "baseline failed" in arms[1]["explanation"]
    assert arms[0]["bits_per_byte"] is None


def test_one_seed_is_undecided():
    arms = [arm("base", [2.0]), arm("new", [1.5])]
    assess(arms, margin=0.0)
    assert arms[1]["verdict"] == "undecided"
    assert arms[1]["more_seeds"] is None
    assert arms[1]["noise"]["seed_sd"] is None


def test_noise_of_what_callbacks_measured():
    arms = [arm("base", [2.0, 2.1]), arm("new", [1.9, 2.0])]
    for run, values in zip(arms[1]["runs"], ([1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 9.0]), strict=True):
        run["metrics"] = {"score": values}
    assess(arms, margin=0.0)
    # Standard deviations over the two seeds at the three common places: 0, 1/sqrt(2), 2/sqrt(2).
    noise = arms[1]["noise_of"]["score"]
    assert noise["seed_sd"] == pytest.approx((0 + 0.5**0.5 + 2 * 0.5**0.5) / 3)
    assert noise["monotonicity"] == 1.0
    assert noise["signal_to_noise"] == pytest.approx(4.0 / (2 * 0.5**0.5))
    assert arms[0]["noise_of"] == {}


def test_crossing():
    assert crossing([10, 20, 30], [4.0, 3.0, 2.0], 2.5) == 25.0
    assert crossing([10, 20, 30], [4.0, 3.0, 2.0], 4.5) == 10.0
    assert crossing([10, 20, 30], [4.0, 3.0, 3.5], 3.0) == 20.0
    assert math.isinf(crossing([10, 20], [4.0, 3.0], 2.9))


def test_profile_over_workloads():
    workloads = []
    for step in (0.1, 0.2):
        arms = [arm("base", [2.00, 2.02, 1.98]), arm("slow", [2.4, 2.4, 2.4], step=step)]
        assess(arms, margin=0.0)
        workloads.append({"arms": arms})
    profile = performance_profile(workloads)
    assert profile is not None
    assert profile["scores"] == {"base": 1.0, "slow": 0.0}
    assert profile["arms"]["base"] == [1.0] * 61
    assert performance_profile(workloads[:1]) is None
