"""Claims that are functions: they hold for the code as it is, and would not for code that is wrong."""

from __future__ import annotations

import pytest
import torch

from thalweg import catalog
from thalweg.arena.claims.cross_entropy_exact import cross_entropy_exact
from thalweg.arena.claims.finding import file_of, find
from thalweg.arena.claims.nuclear_norm_invisible import nuclear_norm_invisible
from thalweg.arena.claims.self_tuning import FIXED, self_tuning
from thalweg.errors import ArenaError


def test_cross_entropy_is_exact_and_the_finding_is_deterministic():
    found = cross_entropy_exact()
    assert found.holds is True
    assert set(found.numbers) == {
        f"{kind}_{part}" for kind in ("float64", "float32") for part in ("losses", "gradients")
    }
    assert 0 < found.numbers["float64_gradients"] < 1e-12
    # Not zero, or float32 was not what was computed in.
    assert 1e-9 < found.numbers["float32_losses"] < 1e-5
    assert found == cross_entropy_exact()
    assert found != cross_entropy_exact(seed=1)


@pytest.mark.parametrize("part", ["losses", "gradients"])
def test_a_cross_entropy_that_is_a_little_off_does_not_hold(monkeypatch, part):
    plain = catalog.resolve("cross_entropy")

    class Off(plain):
        @staticmethod
        def from_hidden(hidden, weight, targets, chunk=1024, weighted=False):
            losses = plain.from_hidden(hidden, weight, targets, chunk, weighted)
            if part == "losses":
                return losses * (1 + 1e-10)
            # The same losses, but a gradient for the hidden states that is off by a part in a million.
            return losses + (hidden - hidden.detach()).sum(-1) * 1e-6

    monkeypatch.setattr(catalog, "resolve", lambda name: Off)
    found = cross_entropy_exact()
    assert found.holds is False
    assert found.numbers[f"float64_{part}"] > 1e-11


def test_nuclear_norm_is_invisible(corpus):
    found = nuclear_norm_invisible(corpus=str(corpus))
    assert found.holds is True
    assert found.numbers["steps_with_another_loss"] == 0
    assert found.numbers["measurements"] == 12
    assert found.numbers["held_out_bits_per_byte_with"] == found.numbers["held_out_bits_per_byte_without"]
    assert found.numbers["held_out_bits_per_byte_with"] > 0


def test_a_monitor_that_touches_the_weights_is_seen(corpus, monkeypatch):
    monitor = catalog.resolve("matrix_nuclear_norm")
    plain = monitor.step

    def touching(self, trainer):
        plain(self, trainer)
        with torch.no_grad():
            trainer.parameters[-1].mul_(1 + 1e-6)

    monkeypatch.setattr(monitor, "step", touching)
    found = nuclear_norm_invisible(corpus=str(corpus))
    assert found.holds is False
    assert found.numbers["steps_with_another_loss"] > 0
    assert found.numbers["weights_equal"] == "false"


@pytest.mark.parametrize(
    "function",
    [
        "os:system",
        "finding",
        "cross_entropy_exact:",
        "../ledger:run_claims",
        "a.b:c",
        "thalweg.arena.ledger:run_claims",
    ],
)
def test_nothing_outside_the_folder_can_be_named(function):
    with pytest.raises(ArenaError, match="no claim function"):
        file_of(function)


def test_a_function_that_is_not_there():
    with pytest.raises(ArenaError, match="no function 'nothing'"):
        find("cross_entropy_exact:nothing")


def test_self_tuning_holds_only_for_what_is_as_low_as_the_best_rate():
    small = {"grid": (0.0, 0.85), "steps": 12, "characters": 8_000}
    same, worse = (self_tuning(tuned=FIXED.format(rate), **small) for rate in (0.0, 0.85))
    assert same.holds is True
    assert worse.holds is False
    assert same.numbers["fixed_bits_per_byte"] == worse.numbers["fixed_bits_per_byte"]
    assert same.numbers["tuned_bits_per_byte"] == same.numbers["fixed_bits_per_byte"][0]
    assert self_tuning(**small).numbers["tuned_dropout"] != 0.05
