"""AWQ: the numbers of its sheet, no loss against rounding to nearest on what it searches, and nothing undone."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from thalweg.arena.claims.awq_against_rounding import awq_against_rounding, judged, plant
from thalweg.errors import ModelError, RecipeError
from thalweg.methods.quantization import AWQ, awq
from thalweg.methods.quantization.awq import _module_around, _Shared, best_ranges, scales_of
from thalweg.models.compression import block_linears, check_kept
from thalweg.models.linears import Linear
from thalweg.models.walker import walk
from thalweg.numerics.number_formats import Format, rounded

W3 = Format("uint3", 3, symmetric=False)
EXAMPLE = torch.tensor([[1.0, -0.4, 0.25, -0.1]])
INPUTS = torch.tensor([[8.0, 0.5, 0.5, 0.5], [-8.0, 0.5, -0.5, 0.5]])
CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "llama, grouped queries": LlamaConfig(
        vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(vocab_size=37, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "opt": OPTConfig(
        vocab_size=37, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        word_embed_proj_dim=32, max_position_embeddings=32,
    ),
}  # fmt: skip


def model_of(case="llama"):
    """With an outlier in every norm."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[case]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    plant(model, tokens())
    return model


def tokens(windows=4, length=16, seed=1):
    return torch.randint(2, 37, (windows, length), generator=torch.Generator().manual_seed(seed))


def linear_of(weight):
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight.clone()
    return Linear("layer", module)


# -- numbers of the sheet -----------------------------------------------------------------------------------------


def test_rounding_of_a_group():
    """The last weight lies between two values, -0.2 and 0; which one it gets is a matter of float32."""
    found = rounded(EXAMPLE, W3, 0)
    torch.testing.assert_close(found.scale, torch.tensor([[0.2]]))
    assert found.zero.tolist() == [[2.0]]
    torch.testing.assert_close(found.values()[:, :3], torch.tensor([[1.0, -0.4, 0.2]]))
    assert abs(float(found.values()[0, 3]) + 0.1) == pytest.approx(0.1)


def test_groups_of_one_sign_keep_their_ends():
    """The source's code gives 1, 2, 3, 3 and, of equal weights, almost nothing: zero is not on its grid."""
    two = Format("uint2", 2, symmetric=False)
    group = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]])
    wanted = torch.tensor([[4 / 3, 8 / 3, 8 / 3, 4.0], [5.0, 5.0, 5.0, 5.0]])
    torch.testing.assert_close(rounded(group, two, 0).values(), wanted)


def test_worked_search():
    shared = _Shared(["layer"])
    shared.see(INPUTS)
    assert shared.mean.value.tolist() == [8.0, 0.5, 0.5, 0.5]
    awq = AWQ(bits=3, group=0)
    block = type("OneLayer", (), {"linears": {"layer": linear_of(EXAMPLE)}})
    losses = [awq._own_loss(block, shared.names, shared.hessian.value, scale) for scale in scales_of(shared.mean.value)]
    for alpha, wanted in {0: 0.003125, 5: 0.081798, 10: 0.343023, 15: 0.138125, 19: 0.073470, 7: 0.001215}.items():
        assert losses[alpha] == pytest.approx(wanted, abs=2e-6), alpha / 20
    assert min(losses) == losses[7]


def test_scales_are_normalised():
    scales = scales_of(torch.tensor([3.0, 0.02, 0.7, 0.0]))
    assert torch.equal(scales[0], torch.ones(4))
    torch.testing.assert_close(scales.amax(1) * scales.amin(1), torch.ones(20))
    assert bool((scales[1:, 3] > 0).all())  # an input that is always zero: the least scale


def test_clipping_never_costs():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 64, generator=generator) ** 3
    inputs = torch.randn(200, 64, generator=generator)
    moments = inputs.mT @ inputs / 200

    def errors(ranges):
        limit = ranges.repeat_interleave(16, 1)
        change = rounded(weight.clamp(-limit, limit), W3, 16).values() - weight
        parts = torch.stack([inputs[:, i : i + 16] @ change[:, i : i + 16].mT for i in range(0, 64, 16)], -1)
        return parts.square().mean(0)

    largest = weight.abs().reshape(6, 4, 16).amax(-1)
    best = best_ranges(weight, moments, W3, 16)
    assert torch.equal(best_ranges(weight, moments, W3, 16, clips=1), largest)
    assert bool((best >= 0.55 * largest - 1e-6).all())
    assert 0 < int((best < largest).sum()) < 24
    assert bool((errors(best) <= errors(largest) * (1 + 1e-4)).all())
    by_hand = torch.stack([errors(largest * (1 - i / 20)) for i in range(10)])
    torch.testing.assert_close(errors(best), by_hand.amin(0), rtol=1e-4, atol=1e-7)


# -- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONFIGS)
def test_a_model(case):
    model = model_of(case)
    found = AWQ(bits=3, group=16).compress(model, tokens())
    json.dumps(found)
    check_kept(model)
    for linear in block_linears(model).values():
        quantized = linear.fixed.quantized
        assert quantized.format == W3
        assert quantized.scale.shape == (linear.shape[0], linear.shape[1] // 16)
        assert torch.equal(quantized.values(), linear.weight)
    sets = found["blocks"][0]["sets"]
    assert sum(len(one["linears"]) for one in sets) == len(block_linears(model)) / 2
    for one in sets:
        if one["folded_into"] is None:
            assert one["ratio"] is None
            (name, *_) = one["linears"]
            notes = Linear(name, model.get_submodule(block_name(model)).get_submodule(name)).fixed.notes
            assert any("nothing in front" in note for note in notes)
        else:
            assert one["loss"] <= one["loss_without_scale"]
    assert any(one["ratio"] for one in sets)


def block_name(model):
    return next(name for name, child in model.named_modules() if isinstance(child, torch.nn.ModuleList)) + ".0"


def outputs_error(model, compressed, inputs):
    with torch.no_grad():
        one, other = model(input_ids=inputs).logits, compressed(input_ids=inputs).logits
    return float((one - other).square().mean())


@pytest.mark.parametrize("case", CONFIGS)
def test_outliers_are_recovered(case):
    """On tokens that were not calibrated with: most of the error of rounding was that of the outliers."""
    model, unseen = model_of(case), tokens(8, seed=2)
    error = {}
    for arm, options in {"rounding": {"ratios": 1, "clips": 1}, "ranges": {"ratios": 1}, "both": {}}.items():
        compressed = copy.deepcopy(model)
        AWQ(bits=4, group=16, **options).compress(compressed, tokens(16))
        error[arm] = outputs_error(model, compressed, unseen)
    assert error["both"] < 0.5 * error["rounding"]
    assert error["ranges"] < error["rounding"]


def test_one_ratio_and_one_range_are_rounding_to_nearest():
    model = model_of()
    plain = {name: linear.weight.clone() for name, linear in block_linears(model).items()}
    AWQ(bits=4, group=16, ratios=1, clips=1).compress(model, tokens())
    for name, linear in block_linears(model).items():
        assert torch.equal(linear.weight, rounded(plain[name], Format("uint4", 4, False), 16).values())


SETS = {
    "self_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "mlp": ["mlp.gate_proj", "mlp.up_proj"],
    "": ["self_attn.q_proj", "mlp.gate_proj"],
}


@pytest.mark.parametrize("around", SETS)
def test_the_searched_loss_is_that_of_the_module_around(around, monkeypatch):
    monkeypatch.setattr("thalweg.models.block_inputs.BATCH_TOKENS", 3 * 16)  # two batches, of three windows and of one
    model = model_of()
    block = next(walk(model, tokens()))
    awq = AWQ(bits=3, group=16)
    shared = _Shared(SETS[around])
    assert _module_around(shared.names) == around
    block.observe({shared.names[0]: shared})
    scale = scales_of(shared.mean.value)[8]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (loss,) = awq._losses_around(around, block, shared, scale[None])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    outputs = []
    with torch.no_grad():
        for trial in (False, True):
            given = []
            hook = block.module.get_submodule(around).register_forward_hook(
                lambda module, arguments, found, given=given: given.append(found[0] if around == "self_attn" else found)
            )
            for name in shared.names if trial else []:
                linear = block.linears[name]
                linear.weight.copy_(rounded(linear.weight * scale, W3, 16).values() / scale)
            for hidden in block.batches():
                block.run(hidden)
            hook.remove()
            outputs.append(torch.cat(given))
    assert loss == pytest.approx(float((outputs[1] - outputs[0]).square().mean()), rel=1e-5)


def test_errors_of_the_walk_are_those_of_rounding():
    """Scales that are folded change weights and inputs; the walk measures against the scaled weights."""
    model = model_of()
    awq = AWQ(bits=8, group=16)
    blocks = []
    for block in walk(model, tokens()):
        awq.compress_block(block)
        blocks.append(block)
    for block in blocks:
        assert set(block.errors) == set(block.linears)
        assert max(block.errors.values()) < 1e-3


def test_same_model_same_result():
    one, other = model_of(), model_of()
    assert AWQ(bits=3, group=16).compress(one, tokens()) == AWQ(bits=3, group=16).compress(other, tokens())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# -- with other steps ---------------------------------------------------------------------------------------------


def test_what_was_pruned_stays_zero():
    model = model_of()
    for linear in block_linears(model).values():
        threshold = linear.weight.abs().flatten().median()
        linear.prune(linear.weight.abs() > threshold)
    masks = {name: linear.fixed.mask.clone() for name, linear in block_linears(model).items()}
    AWQ(bits=3, group=16).compress(model, tokens())
    check_kept(model)
    for name, linear in block_linears(model).items():
        assert bool((linear.weight[~masks[name]] == 0).all())
        assert bool((linear.weight != 0).any())


def test_what_was_quantized_stays_on_its_grid():
    model = model_of()
    earlier = {}
    for name, linear in block_linears(model).items():
        if name.endswith(("k_proj", "v_proj")):
            linear.quantize(rounded(linear.weight, Format("int8", 8), 0))
            earlier[name] = linear.weight.clone()
    found = AWQ(bits=3, group=16).compress(model, tokens())
    check_kept(model)
    linears = block_linears(model)
    assert all(torch.equal(linears[name].weight, values) for name, values in earlier.items())
    assert found["blocks"][1]["left_as_they_were"] == ["self_attn.k_proj", "self_attn.v_proj"]
    # Its siblings share an input that cannot be scaled, and nothing is folded into a layer on its grid.
    for one in found["blocks"][0]["sets"]:
        scaled = one["linears"][0] not in ("self_attn.q_proj", "self_attn.o_proj")
        assert (one["folded_into"] is not None) == scaled
    assert linears["model.layers.0.self_attn.q_proj"].fixed.quantized.format.bits == 3


def test_a_group_that_does_not_fit_is_a_row():
    model = model_of()
    AWQ(bits=4, group=32).compress(model, tokens())
    for name, linear in block_linears(model).items():
        one_a_row = name.endswith("down_proj")
        assert linear.fixed.quantized.scale.shape[1] == 1
        assert any("one scale a row" in note for note in linear.fixed.notes) == one_a_row


def test_half_precision():
    model = model_of().bfloat16()
    AWQ(bits=4, group=16).compress(model, tokens())
    check_kept(model)
    assert all(linear.weight.dtype == torch.bfloat16 for linear in block_linears(model).values())


def test_inputs_that_are_always_zero():
    model = model_of()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.zero_()
        model.model.layers[1].post_attention_layernorm.weight[5] = 0.0
    AWQ(bits=3, group=16).compress(model, tokens())
    check_kept(model)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_what_cannot_be_compressed_is_said():
    model = model_of()
    with pytest.raises(ModelError, match="calibration"):
        AWQ().compress(model, None)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        AWQ().compress(model, tokens())


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"group": -1}, {"ratios": 0}, {"clips": 0}])
def test_wrong_options(options):
    with pytest.raises(RecipeError):
        AWQ(**options)


# -- the claim ----------------------------------------------------------------------------------------------------


def test_planting_leaves_the_function():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    planted = copy.deepcopy(model)
    plant(planted, tokens())
    assert outputs_error(model, planted, tokens()) < 1e-12
    for block in planted.model.layers:
        assert sorted(block.input_layernorm.weight.tolist())[-2:] == [1.0, pytest.approx(30.0)]


class Given:
    """In place of a trained model: the loss is the distance from its own logits."""

    def model(self):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    def calibration(self, windows, seed):
        return tokens(windows, seed=seed)

    def evaluation(self, model):
        return SimpleNamespace(loss=outputs_error(self.model(), model, tokens(8, seed=99)))


def test_claim_is_measured_and_can_fail(monkeypatch):
    found = awq_against_rounding(source=Given(), windows=8, draws=2)
    numbers = found.numbers
    assert found.holds is judged(list(zip(*(numbers[key] for key in GAPS), strict=True)))
    assert numbers["loss before"] == 0
    awq_added, rounding = (numbers[f"added by {arm}, outliers"] for arm in ("awq", "rounding"))
    assert all(one < 0.7 * other for one, other in zip(awq_added, rounding, strict=True))
    assert numbers[GAPS[0]][1] == pytest.approx(sum(awq_added) / 2 - sum(rounding) / 2, abs=2e-5)
    # Scales the wrong way round make small what should be large.
    monkeypatch.setattr(awq, "scales_of", lambda mean, ratios: 1.0 / scales_of(mean, ratios)[-1:])
    assert awq_against_rounding(source=Given(), windows=8, draws=2).holds is False


GAPS = ("awq less rounding, plain and outliers", "standard errors")


@pytest.mark.parametrize(
    ("gaps", "holds"),
    [
        ([(-0.3, 0.1), (-0.5, 0.1)], True),
        ([(-0.1, 0.1), (-0.5, 0.1)], None),
        ([(0.1, 0.1), (-0.5, 0.1)], None),
        ([(-0.3, 0.1), (0.3, 0.1)], False),
        ([(-0.3, math.inf), (-0.3, math.inf)], None),
    ],
)
def test_judgement(gaps, holds):
    assert judged(gaps) is holds
