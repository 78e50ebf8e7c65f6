"""Wanda: the numbers of the sheet, and what its score is blind to."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.pruning import Magnitude, Wanda
from thalweg.methods.pruning.magnitude import kept as by_magnitude
from thalweg.methods.pruning.masks import Target, target
from thalweg.methods.pruning.wanda import kept
from thalweg.models.compression import block_linears, check_kept
from thalweg.models.input_statistics import SecondMoment
from thalweg.models.walker import walk
from thalweg.numerics.number_formats import Format, rounded

CALIBRATION = torch.randint(2, 61, (6, 12), generator=torch.Generator().manual_seed(0))


def weights_of(model):
    return {name: linear.weight.clone() for name, linear in block_linears(model).items()}


def test_the_numbers_of_the_sheet(sheet, linear_of):
    moment = SecondMoment()
    moment.see(sheet.inputs.float())
    scores = sheet.weight.abs() * (6 * moment.value.double()).sqrt()
    expected = [1.2247, 2.4495, 0.6928, 2.1166, 2.4495, 0.7348, 2.0785, 0.2646]
    # The sheet has sums over tokens, 6 times the mean.
    assert scores.flatten().tolist() == pytest.approx(expected, abs=5e-5)
    for pattern in ("unstructured", "2:4"):
        mask = kept(linear_of(sheet.weight), moment.value, target(0.5, pattern, "wanda"))
        assert mask.int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]


def test_with_inputs_of_one_norm_it_is_magnitude_by_rows(random_layer, linear_of):
    weight, _ = random_layer(8, 12)
    moment = torch.full((12,), 3.7)
    mask = kept(linear_of(weight), moment, Target(0.5))
    rows = [by_magnitude(linear_of(row[None]), Target(0.5)) for row in weight]
    assert torch.equal(mask, torch.cat(rows))
    assert not torch.equal(mask, by_magnitude(linear_of(weight), Target(0.5)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
def test_each_row_loses_as_much_and_nothing_else_changes(causal_model, name, sparsity):
    model = causal_model(name)
    before = weights_of(model)
    found = Wanda(sparsity=sparsity).compress(model, CALIBRATION)
    for layer, weight in weights_of(model).items():
        count = int(sparsity * weight.shape[1] + 1e-6)
        assert (weight == 0).sum(1).tolist() == [count] * len(weight)
        assert torch.equal(weight[weight != 0], before[layer][weight != 0])
    told = [share for block in found["blocks"] for share in block["sparsity"].values()]
    assert told == [float((weight == 0).sum()) / weight.numel() for weight in weights_of(model).values()]
    check_kept(model)


def test_norms_are_of_the_layers_own_inputs_behind_pruned_blocks(causal_model):
    """Each mask is made anew from inputs found in another way: the whole model, in which only the blocks before the
    layer's are pruned."""
    model, dense = causal_model("llama"), causal_model("llama")
    Wanda(sparsity=0.5).compress(model, CALIBRATION)
    pruned, linears = block_linears(model), block_linears(dense)
    for index in (0, 1):
        inputs: dict[str, torch.Tensor] = {}
        names = [name for name in linears if f"layers.{index}." in name]
        hooks = [
            linears[name].module.register_forward_pre_hook(
                lambda _, given, name=name, inputs=inputs: inputs.__setitem__(name, given[0].flatten(0, 1))
            )
            for name in names
        ]
        with torch.no_grad():
            dense(input_ids=CALIBRATION, use_cache=False)
        for hook in hooks:
            hook.remove()
        for name in names:
            scores = linears[name].weight.abs() * inputs[name].norm(dim=0)
            half = scores.shape[1] // 2
            expected = torch.ones_like(scores, dtype=torch.bool).scatter_(1, scores.argsort(1)[:, :half], False)
            assert torch.equal(pruned[name].fixed.mask, expected)
            linears[name].weight.mul_(expected)


def test_a_change_of_scale_between_a_norm_and_its_readers_leaves_the_mask(causal_model):
    """Which fools magnitude."""
    factors = torch.exp2(torch.arange(16.0) % 7 - 3)
    plain, scaled = causal_model("llama"), causal_model("llama")
    with torch.no_grad():
        for layer in scaled.model.layers:
            layer.input_layernorm.weight.mul_(factors)
            layer.post_attention_layernorm.weight.mul_(factors)
            for reader in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                reader.weight.div_(factors)
            for reader in (layer.mlp.gate_proj, layer.mlp.up_proj):
                reader.weight.div_(factors)
        torch.testing.assert_close(scaled(CALIBRATION).logits, plain(CALIBRATION).logits)
    for method, same in ((Wanda(), True), (Magnitude(), False)):
        pair = [causal_model("llama"), causal_model("llama")]
        pair[1].load_state_dict(scaled.state_dict())
        for model in pair:
            method.compress(model, CALIBRATION)
        one, other = (
            torch.cat([linear.fixed.mask.flatten() for linear in block_linears(model).values()]) for model in pair
        )
        assert torch.equal(one, other) is same


def test_what_was_pruned_before_counts_and_stays(causal_model):
    model = causal_model("gpt2")
    Magnitude(sparsity=0.3).compress(model)
    before = weights_of(model)
    Wanda(sparsity=0.5).compress(model, CALIBRATION)
    for layer, weight in weights_of(model).items():
        was = (before[layer] == 0).sum(1)
        assert torch.equal((weight == 0).sum(1), was.clamp_min(weight.shape[1] // 2))
        assert bool((weight[before[layer] == 0] == 0).all())
    check_kept(model)
    # A mask with more zeros in a row than are wanted loses no others.
    after = weights_of(model)
    Wanda(sparsity=0.2).compress(model, CALIBRATION)
    assert all(torch.equal(after[name], weight) for name, weight in weights_of(model).items())


def test_inputs_that_are_always_zero_go_after_what_is_pruned(linear_of):
    linear = linear_of(torch.tensor([[5.0, 1.0, 2.0, 3.0]]))
    linear.prune(torch.tensor([[True, True, True, False]]))
    moment = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert kept(linear, moment, Target(0.25)).tolist() == [[True, True, True, False]]
    assert kept(linear, moment, Target(0.5)).tolist() == [[False, True, True, False]]


def test_quantized_weights_stay_on_their_grid(causal_model):
    model = causal_model("llama")
    for linear in block_linears(model).values():
        linear.quantize(rounded(linear.weight, Format("int4", 4, symmetric=False), 8))
    before = weights_of(model)
    Wanda(pattern="2:4").compress(model, CALIBRATION)
    check_kept(model)
    for layer, weight in weights_of(model).items():
        assert torch.equal(weight, before[layer] * (weight != 0))
        assert bool(((weight.unflatten(1, (-1, 4)) == 0).sum(-1) >= 2).all())


def test_calibration_is_needed(causal_model):
    with pytest.raises(ModelError, match="needs calibration"):
        Wanda().compress(causal_model("llama"))


def test_a_layer_that_no_token_reaches_is_left_and_told_of(causal_model):
    model = causal_model("llama")
    unused = torch.nn.Linear(16, 8)
    model.model.layers[1].unused = unused
    before = unused.weight.clone()
    found = Wanda().compress(model, CALIBRATION)
    assert torch.equal(unused.weight, before)
    assert found["blocks"][1]["sparsity"]["unused"] == 0.0
    assert "no calibration token" in block_linears(model)["model.layers.1.unused"].fixed.notes[0]


def test_only_whole_patterns_are_pruned_and_nothing_of_a_block_before_it_is_sure(causal_model):
    model = causal_model("llama", intermediate_size=20)
    before = weights_of(model)
    with pytest.raises(ModelError, match=r"mlp\.down_proj has 20 inputs"):
        Wanda(pattern="4:8").compress(model, CALIBRATION)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())
    assert len(list(walk(model, None))) == 2


def test_wrong_options_are_refused():
    for options in ({"sparsity": -0.1}, {"pattern": "2:"}, {"pattern": "2:4", "sparsity": 0.6}):
        with pytest.raises(RecipeError):
            Wanda(**options)
