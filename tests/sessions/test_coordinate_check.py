"""The coordinate check and the transfer of rates: they see muP hold, and see it when it does not."""

from __future__ import annotations

import json
import math

import pytest
import torch

from thalweg import catalog
from thalweg.arena.claims.mup_transfer import mup_transfer
from thalweg.errors import RecipeError
from thalweg.methods.optimizers import mup as method
from thalweg.sessions.coordinate_check import FLAT, PARTS, activations, coordinate_check, flat
from thalweg.sessions.rate_transfer import best_rate, rate_transfer
from thalweg.sessions.width_series import WidthSeries, shape_at

WIDTHS = (32, 64, 128)


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    out = tmp_path_factory.mktemp("check")
    return coordinate_check(WIDTHS, steps=3, seeds=1, out=out), out


def test_changes_are_flat_under_mup_and_grow_without(check):
    told, _ = check
    assert told.holds
    assert told.verdict.startswith("muP holds")
    assert max(told.growth["mup"].values()) < FLAT
    assert told.growth["standard"]["feed-forward"] > 0.5
    assert told.growth["standard"]["residual stream"] > 0.5
    # At the base both are one model.
    assert all(told.changes["mup"][part][0] == told.changes["standard"][part][0] for part in PARTS)
    # Logits begin smaller the wider the model is: as the root, for a table whose entries are as large at every width.
    first, _, last = (row[0] for row in told.sizes["mup"]["logits"])
    assert last / first == pytest.approx(0.5, rel=0.2)


def test_it_is_written_and_drawn(check):
    told, out = check
    found = json.loads((out / "mup-check.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(told.to_dict()))
    assert found["widths"] == list(WIDTHS)
    assert len(found["changes"]["mup"]["logits"][0]) == 4
    assert (out / "mup-check.png").read_bytes()[1:4] == b"PNG"


def test_a_wrong_rule_is_seen(monkeypatch):
    """Rates that do not fall with the width, and otherwise muP."""
    monkeypatch.setitem(method.RULES, "adam", method.Rule(0.0, 0.0, 0.0, 1))
    told = coordinate_check(WIDTHS, steps=3, seeds=1, out=None)
    assert not told.holds
    assert told.verdict.startswith("muP does not hold: under it changes go as")


def test_what_counts_as_flat():
    assert flat("attention", 0.2)
    assert not flat("attention", 0.3)
    assert not flat("attention", -0.3)
    assert flat("logits", -0.45)
    assert not flat("logits", -0.6)
    assert not flat("logits", math.nan)


def test_activations_are_those_of_the_model():
    series = WidthSeries(base_width=32, layers=2, context=16, batch=2)
    model, _ = series.model(64, "mup", 0, 0.01)
    tokens = next(series.batches(0))["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=tokens, output_hidden_states=True)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    found = activations(model, tokens)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert set(found) == set(PARTS)
    assert torch.equal(found["logits"], expected.logits)
    assert torch.equal(found["embedding"][0], expected.hidden_states[0])
    inner = found["embedding"][0] + found["attention"].sum(0) + found["feed-forward"].sum(0)
    torch.testing.assert_close(found["residual stream"], inner)
    assert found["attention scores"].shape == (2, 2, 16, 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_optimizer_gets_its_rule(optimizer):
    series = WidthSeries(optimizer, base_width=32, layers=1)
    _, built = series.model(128, "mup", 0, 0.01)
    exponent = catalog.lookup(optimizer).defaults["width_exponent"]
    ratio = shape_at(128, 1).feed_forward / shape_at(32, 1).feed_forward
    expected = {4.0**-exponent, ratio**-exponent}
    assert {group["lr_scale"] for group in built.param_groups if group["kind"] == "matrix"} == expected
    assert type(built) is catalog.resolve(optimizer)


def test_what_cannot_be_checked():
    for widths in ((64,), (64, 100), (), (16, 32)):
        with pytest.raises(RecipeError, match="width"):
            coordinate_check(widths, out=None)
    with pytest.raises(RecipeError, match="no optimizer"):
        coordinate_check(optimizer="wsd", out=None)
    with pytest.raises(RecipeError, match="rate"):
        coordinate_check(rate=0.0, out=None)


def test_the_best_rate_is_that_of_a_parabola():
    rates = [0.001, 0.002, 0.004, 0.008]
    losses = [(math.log(rate) - math.log(0.003)) ** 2 + 1.0 for rate in rates]
    rate, inside = best_rate(rates, losses)
    assert inside
    assert rate == pytest.approx(0.003)
    assert best_rate(rates, [1.0, 2.0, 3.0, 4.0]) == (0.001, False)
    assert best_rate(rates, [3.0, 2.0, math.inf, math.inf]) == (0.002, True)


def test_losses_over_rates_and_widths():
    series = WidthSeries(base_width=32, layers=1, context=16, batch=4)
    told: list[str] = []
    losses = rate_transfer(series, (32, 64), (1e-4, 0.02), "mup", steps=12, seeds=(0, 1), tell=told.append)
    assert losses.shape == (2, 2)
    assert (losses[:, 1] < losses[:, 0] - 0.2).all()
    assert told[0] == f"mup, width 32, rate 0.0001: {losses[0, 0]:.4f}"
    again = rate_transfer(series, (32,), (0.02,), "standard", steps=12, seeds=(0, 1))
    assert again[0, 0] == losses[0, 1]


def test_the_claim_can_be_run():
    finding = mup_transfer(widths=(32, 64), rates=(0.002, 0.01, 0.05), steps=6)
    assert finding.numbers["moved_mup"] >= 1.0
    assert len(finding.numbers["loss_mup_64"]) == 3
    assert "best rate moves by a factor" in finding.sentence
