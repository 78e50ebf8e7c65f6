"""GPTQ on models: the order of things within blocks, what is said, and the claim."""

from __future__ import annotations

import pytest
import torch

from thalweg.arena.claims import gptq_over_rtn
from thalweg.errors import ModelError
from thalweg.methods.quantization import GPTQ, RTN
from thalweg.models.compression import block_linears
from thalweg.models.input_statistics import Hessian
from thalweg.models.walker import Block, walk
from thalweg.numerics.hessian_factor import hessian_factor


def output_error(model, reference, calibration):
    with torch.no_grad():
        return float((model(calibration).logits - reference(calibration).logits).square().mean())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"true_sequential": True}, {"symmetric": False}])
def test_outputs_are_closer_than_with_rounding_to_nearest(kind, options, llama, gpt2, calibration):
    make = {"llama": lambda: llama().eval(), "gpt2": gpt2}[kind]
    nearest, second = make(), make()
    symmetric = {key: value for key, value in options.items() if key == "symmetric"}
    RTN(bits=3, group=8, **symmetric).compress(nearest)
    GPTQ(bits=3, group=8, **options).compress(second, calibration)
    assert output_error(second, make(), calibration) < 0.8 * output_error(nearest, make(), calibration)


def test_errors_of_outputs_are_those_that_the_walk_measures(llama, calibration, monkeypatch):
    """What a layer's Hessian says of its outputs is what its outputs are, in the walk that goes on.

    With true_sequential, since otherwise the inputs of later linears change after they were looked at.
    """
    monkeypatch.setattr("thalweg.models.walker.OUTPUTS_SEEN", 1 << 30)
    model = llama().eval()
    method = GPTQ(bits=3, group=8, true_sequential=True)
    for block in walk(model, calibration):
        found = method.compress_block(block)
        block.advance()
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            assert found["linears"][name]["output_error"] == pytest.approx(block.errors[name], rel=1e-3)
        break


@pytest.mark.parametrize(("true_sequential", "passes"), [(True, 4), (False, 1)])
def test_true_sequential_sees_what_was_quantized_before(true_sequential, passes, llama, calibration, monkeypatch):
    seen = []
    real = Block.observe

    def observe(block, observers):
        quantized = {name for name, linear in block.linears.items() if linear.fixed.quantized is not None}
        seen.append((set(observers), quantized))
        real(block, observers)

    monkeypatch.setattr(Block, "observe", observe)
    GPTQ(bits=4, group=8, true_sequential=true_sequential).compress(llama().eval(), calibration)
    assert len(seen) == 2 * passes
    qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    first = {name.split(".")[1] for names, _ in seen[:passes] for name in names}
    assert first == {"q_proj", "o_proj", "gate_proj", "down_proj"}
    if true_sequential:
        assert [len(done) for _, done in seen[:4]] == [0, 3, 4, 6]
        assert seen[1] == ({"self_attn.o_proj"}, qkv)
    else:
        assert [len(done) for _, done in seen] == [0, 0]


def test_a_later_block_sees_the_quantized_one_before(llama, calibration):
    """Its Hessian is that of the compressed model's hidden states, so it is another than at the start."""
    model, untouched = llama().eval(), llama().eval()
    GPTQ(bits=2, group=0).compress(model, calibration)
    again = list(_first_inputs(model, calibration))
    before = list(_first_inputs(untouched, calibration))
    assert torch.allclose(again[0], before[0])
    assert not torch.allclose(again[1], before[1], rtol=1e-3)


def _first_inputs(model, calibration):
    for block in walk(model, calibration):
        hessian = Hessian()
        block.observe({"self_attn.q_proj": hessian})
        yield hessian.value


def test_few_tokens_and_no_damping_raise_the_damping_and_say_so(llama, calibration):
    model = llama().eval()
    found = GPTQ(bits=4, group=8, damping=0.0).compress(model, calibration[:1, :3])
    layer = found["blocks"][0]["linears"]["mlp.down_proj"]
    assert layer["damping"] > 0.0
    assert any(note.startswith("the Hessian is singular: damping raised from 0 to 0.001") for note in layer["notes"])
    assert block_linears(model)["model.layers.0.mlp.down_proj"].fixed.notes == layer["notes"]


def test_the_factor_of_a_singular_matrix():
    vector = torch.arange(1.0, 7.0, dtype=torch.float64)
    found = hessian_factor(torch.outer(vector, vector), 0.0)
    assert found.damping == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="not finite"):
        hessian_factor(torch.full((2, 2), torch.nan))


def test_inputs_that_are_always_zero_are_rounded_to_nearest(llama, calibration):
    model = llama().eval()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 0.0
        original = model.model.layers[0].self_attn.q_proj.weight.clone()
    found = GPTQ(bits=4, group=0).compress(model, calibration)
    layer = found["blocks"][0]["linears"]["self_attn.q_proj"]
    assert layer["notes"] == ["1 inputs were always zero: their weights are rounded to nearest"]
    quantized = block_linears(model)["model.layers.0.self_attn.q_proj"].fixed.quantized
    assert torch.equal(quantized.values()[:, 3], quantized.grid.round(original[:, 3:4])[:, 0])


def test_a_layer_that_no_input_reaches_is_rounded_to_nearest(llama, calibration):
    """As an expert that no token of the calibration text is sent to."""
    model, nearest = llama().eval(), llama().eval()
    for one in (model, nearest):
        one.model.layers[0].mlp.spare = torch.nn.Linear(16, 16)
        torch.nn.init.constant_(one.model.layers[0].mlp.spare.weight, 0.3)
    found = GPTQ(bits=3, group=8).compress(model, calibration)
    RTN(bits=3, group=8).compress(nearest)
    assert torch.equal(model.model.layers[0].mlp.spare.weight, nearest.model.layers[0].mlp.spare.weight)
    notes = found["blocks"][0]["linears"]["mlp.spare"]["notes"]
    assert notes == ["no calibration input reached it: rounded to nearest"]


def test_inputs_that_are_not_finite(llama, calibration):
    model = llama().eval()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[0] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        GPTQ(bits=4, group=8).compress(model, calibration)


def test_needs_calibration(llama):
    with pytest.raises(ModelError, match="GPTQ needs calibration inputs"):
        GPTQ().compress(llama())


def test_claim_is_judged_by_held_out_loss(monkeypatch, stand_in):
    start = stand_in(gptq_over_rtn)
    found = gptq_over_rtn.gptq_over_rtn(windows=8, draws=2)
    assert found == gptq_over_rtn.gptq_over_rtn(windows=8, draws=2)
    assert found.numbers["added by gptq"] != gptq_over_rtn.gptq_over_rtn(1, windows=8, draws=2).numbers["added by gptq"]
    for losses, holds in (([1.0, 1.4, 1.1, 1.2], True), ([1.0, 1.4, 1.1, 1.3], False), ([1.0, 0.9, 0.8, 0.8], False)):
        values = iter(losses)
        monkeypatch.setattr(start, "losses", lambda model, values=values: next(values))
        assert gptq_over_rtn.gptq_over_rtn(windows=8, draws=2).holds is holds
