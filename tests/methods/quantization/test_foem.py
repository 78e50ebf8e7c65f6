"""FOEM on models; its column loop is tested in `test_columns.py`."""

from __future__ import annotations

import pytest
import torch

from thalweg.arena.claims import foem_against_gptq
from thalweg.errors import RecipeError
from thalweg.methods.quantization import FOEM, GPTQ


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_without_a_pull_it_is_gptq_bit_for_bit(llama, calibration):
    models = [llama().eval() for _ in range(3)]
    GPTQ(bits=3, group=8).compress(models[0], calibration)
    FOEM(beta=0.0, bits=3, group=8).compress(models[1], calibration)
    FOEM(bits=3, group=8).compress(models[2], calibration)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_pull_has_bounds(beta):
    with pytest.raises(RecipeError, match="at least 0 and at most 1"):
        FOEM(beta=beta)


def test_claim_is_judged_by_pairs(monkeypatch, stand_in):
    stand_in(foem_against_gptq)
    found = foem_against_gptq.foem_against_gptq(group=8, windows=8, draws=2)
    assert found == foem_against_gptq.foem_against_gptq(group=8, windows=8, draws=2)
    assert found != foem_against_gptq.foem_against_gptq(1, group=8, windows=8, draws=2)
    assert len(found.numbers["held-out loss, foem less gptq"]) == 2
    for differences, holds in (([-0.03, -0.02, -0.04], True), ([0.03, 0.02, 0.04], False), ([-0.3, 0.1, 0.1], False)):
        values = iter([loss for difference in differences for loss in ((1.0 + difference, [0.9, 1.0]), (1.0, [1, 1]))])
        monkeypatch.setattr(foem_against_gptq, "_quantized", lambda *_, values=values: next(values))
        found = foem_against_gptq.foem_against_gptq(draws=3)
        assert found.holds is holds
        assert found.numbers["draws with a lower error of layers"] == 3
        assert found.numbers["error of layers, foem over gptq"] == [0.95] * 3
