"""LLM-Drop: the measure against what can be worked out by hand, and dropping against models without the halves."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.pruning.llm_drop import LLMDrop, MeanCosine, choose, drop, similarities, without
from thalweg.models.compression import block_linears, check_kept
from thalweg.models.sublayers import sublayers_of
from thalweg.models.walker import named_blocks
from thalweg.numerics.number_formats import Format, rounded

KNOWN = ["llama", "qwen2", "mistral", "gpt2", "gpt_neox", "opt", "phi"]


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def half_of(model, kind, index):
    name, block = named_blocks(model)[index]
    return next(half for half in sublayers_of(block, name) if half.kind == kind)


def cosine(before, after):
    mean = MeanCosine()
    mean.see(torch.tensor([before]), torch.tensor([after]))
    return mean.value


# -- the measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "expected"),
    [((0.0, 0.0), 1.0), ((0.0, 1.0), 0.70711), ((0.0, 0.1), 0.99504), ((2.5, 0.0), 1.0), ((-0.9, 0.0), 1.0)],
)
def test_similarity_counts_the_residual(output, expected):
    assert cosine((1.0, 0.0), (1.0 + output[0], output[1])) == pytest.approx(expected, abs=1e-5)


def test_similarity_of_nothing_added_is_exactly_one_and_zeros_stay_zeros():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    rows[7] = 0
    mean = MeanCosine()
    mean.see(rows, rows.clone())
    assert mean.value == 1.0
    assert cosine((0.0, 0.0), (1.0, 0.0)) == 0.0


@pytest.mark.parametrize("ratio", [0.01, 0.1, 1.0])
def test_orthogonal_output(ratio):
    found = cosine((3.0, 0.0), (3.0, 3.0 * ratio))
    assert found == pytest.approx(1 / math.sqrt(1 + ratio**2), abs=1e-6)
    if ratio < 0.5:
        assert 1 - found == pytest.approx(ratio**2 / 2, rel=0.02, abs=1e-6)


def test_a_mean_over_tokens_and_not_of_means():
    mean = MeanCosine()
    mean.see(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    mean.see(torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[1.0, 0.0]] * 3))
    assert mean.value == 0.75


def by_hand(model, tokens):
    """Similarities of a Llama from its modules' inputs and outputs, all windows at once."""
    found = {"attention": [], "mlp": [], "block": []}
    seen = {}

    def keep(key):
        def hook(module, arguments, keywords, output):
            first = output[0] if isinstance(output, tuple) else output
            seen[key] = (arguments[0] if arguments else keywords["hidden_states"], first)

        return hook

    for index, layer in enumerate(model.model.layers):
        for part in (layer, layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp):
            part.register_forward_hook(keep((index, part)), with_kwargs=True)
    logits(model, tokens)
    for index, layer in enumerate(model.model.layers):
        x, y = seen[index, layer]
        between = seen[index, layer.post_attention_layernorm][0]
        for kind, before, after in (
            ("attention", x, x + seen[index, layer.self_attn][1]),
            ("mlp", between, between + seen[index, layer.mlp][1]),
            ("block", x, y),
        ):
            found[kind].append(float(torch.cosine_similarity(before, after, dim=-1).mean()))
    return found


def test_similarities_are_those_of_the_dense_model(four_blocks, text):
    model = four_blocks()
    found = similarities(model, text(9))
    expected = by_hand(four_blocks(), text(9))
    for kind, values in expected.items():
        assert found[kind] == pytest.approx(values, abs=1e-6)
    assert all(-1 < value < 0.999 for values in found.values() for value in values)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_half_that_is_zero_has_similarity_one_and_leaves_the_others(four_blocks, text, kind):
    model = four_blocks(kind)
    before = similarities(model, text())
    drop(model, [{"kind": "attention", "block": 3}, {"kind": "mlp", "block": 3}])
    after = similarities(model, text())
    assert after["attention"][3] == after["mlp"][3] == after["block"][3] == 1.0
    assert after["attention"][:3] == before["attention"][:3]
    assert after["mlp"][:3] == before["mlp"][:3]
    assert before["mlp"][3] < 0.999


def test_parallel_mlps_are_compared_with_the_stream_in_front_of_the_block(four_blocks, text):
    """The MLP of a parallel block: silencing attention may not change its similarity; in a sequential one it does."""
    for parallel in (True, False):
        model = four_blocks("gpt_neox", use_parallel_residual=parallel)
        before = similarities(model, text())["mlp"][0]
        drop(model, [{"kind": "attention", "block": 0}])
        assert (similarities(model, text())["mlp"][0] == before) is parallel


def test_measuring_leaves_the_model_as_it_was(four_blocks, text):
    model = four_blocks("opt").train()
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    one, two = similarities(model, text()), similarities(model, text())
    assert one == two
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gemma2", "post_feedforward_layernorm"),
        ("bloom", "something of its own for every window"),
        ("granite", "not the input plus"),
        ("mixtral", "still adds something|is not one attention and one MLP"),
    ],
)
def test_blocks_of_another_kind_are_refused_with_what_was_found(four_blocks, text, kind, said):
    model = four_blocks(kind)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=said):
        LLMDrop("joint", 2).compress(model, text())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_blocks_of_another_kind_can_be_dropped_whole(four_blocks, text):
    model = four_blocks("gemma2")
    found = LLMDrop("block", 1).compress(model, text())
    assert set(found["similarities"]) == {"block"}
    assert model.config.num_hidden_layers == 3


# -- choosing ---------------------------------------------------------------------------------------------------------

SCORES = {"attention": [0.5, 0.9, 0.7, 0.8], "mlp": [0.1, 0.45, 0.3, 0.2], "block": [0.1, 0.2, 0.4, 0.3]}


def test_most_similar_first():
    assert choose(SCORES, ("attention",), 2) == [("attention", 1), ("attention", 3)]
    assert choose(SCORES, ("block",), 0.5) == [("block", 2), ("block", 3)]
    assert choose(SCORES, ("mlp",), 0) == []
    assert choose(SCORES, ("mlp",), 0.01) == [("mlp", 1)]


def test_joint_takes_attention_first_where_all_mlps_matter_more():
    for count in (1, 2, 3, 4):
        assert choose(SCORES, ("attention", "mlp"), count) == choose(SCORES, ("attention",), count)
    assert choose(SCORES, ("attention", "mlp"), 5)[-1] == ("mlp", 1)


def test_what_is_gone_is_not_chosen_again():
    gone = frozenset({("attention", 1)})
    assert choose(SCORES, ("attention",), 2, gone) == [("attention", 3), ("attention", 2)]
    with pytest.raises(ModelError, match="count=3"):
        choose(SCORES, ("attention",), 4, gone)


def test_one_block_is_left():
    assert len(choose(SCORES, ("block",), 3)) == 3
    with pytest.raises(ModelError, match="count=3"):
        choose(SCORES, ("block",), 4)


@pytest.mark.parametrize("options", [{"what": "heads"}, {"count": -1}, {"count": 1.5}, {"count": math.nan}])
def test_options_out_of_range(options):
    with pytest.raises(RecipeError):
        LLMDrop(**options)


# -- dropping ---------------------------------------------------------------------------------------------------------


def test_nothing_dropped_changes_nothing(four_blocks, text):
    model = four_blocks()
    before = logits(model, text())
    found = LLMDrop("joint", 0).compress(model, text())
    assert torch.equal(logits(model, text()), before)
    assert found["dropped"] == []
    assert found["parameters_dropped"] == 0


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("what", ["attention", "mlp", "joint"])
def test_dropped_is_without(four_blocks, text, tmp_path, kind, what):
    """Zero weights, the saved and loaded model, and the model without the modules: one and the same."""
    model, tokens = four_blocks(kind), text()
    before = logits(model, tokens)
    found = LLMDrop(what, 2).compress(model, tokens)
    dropped = logits(model, tokens)
    assert not torch.allclose(before, dropped, atol=1e-3)
    assert len(found["dropped"]) == 2
    for one in found["dropped"]:
        half = half_of(model, one["kind"], one["block"])
        assert one["similarity"] == found["similarities"][one["kind"]][one["block"]] < 0.999
        assert sum(int(value.count_nonzero()) for linear in half.linears for value in linear.module.parameters()) == 0
        assert one["parameters"] == sum(
            value.numel() for linear in half.linears for value in linear.module.parameters()
        )
        assert any("dropped" in note for linear in half.linears for note in linear.fixed.notes)
    check_kept(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, tokens), dropped)
    assert torch.equal(logits(without(model, found["dropped"]), tokens), dropped)
    assert sum(value.numel() for value in model.parameters()) < found["parameters"] - 0.9 * found["parameters_dropped"]


def test_attention_with_a_zero_output_matrix_is_attention_dropped(four_blocks, text):
    one, other = four_blocks(), four_blocks()
    with torch.no_grad():
        one.model.layers[1].self_attn.o_proj.weight.zero_()
    drop(other, [{"kind": "attention", "block": 1}])
    assert torch.equal(logits(one, text()), logits(other, text()))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt"])
def test_without_all_attention_tokens_do_not_see_each_other(four_blocks, text, kind):
    model, tokens = four_blocks(kind), text(2)
    other = tokens.clone()
    other[:, 0] = (tokens[:, 0] + 1) % 30
    assert not torch.allclose(logits(model, tokens)[:, 1:], logits(model, other)[:, 1:])
    LLMDrop("attention", 4).compress(model, tokens)
    assert torch.equal(logits(model, tokens)[:, 1:], logits(model, other)[:, 1:])
    assert not torch.equal(logits(model, tokens)[:, 0], logits(model, other)[:, 0])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("blocks", [(0,), (0, 1, 2, 3)])
def test_a_cache_after_the_removal(four_blocks, text, kind, blocks):
    """Models ask the first layer of the cache how many tokens there are, and it may be that of a dropped attention."""
    model, dropped, tokens = four_blocks(kind), [{"kind": "attention", "block": index} for index in blocks], text(2, 9)
    drop(model, dropped)
    expected = logits(model, tokens)
    without(model, dropped)
    cache, found = None, []
    with torch.no_grad():
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9)):
            out = model(input_ids=tokens[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    assert cache.get_seq_length() == 9
    assert cache.layers[0].keys.numel() == 2 * 9
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert model.generate(tokens, use_cache=True, **options).tolist() == (
        model.generate(tokens, use_cache=False, **options).tolist()
    )


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_what_stands_there_has_the_shapes_of_what_stood_there(four_blocks, kind):
    model, hidden = four_blocks(kind), torch.ones(2, 3, 16)
    block = named_blocks(model)[1][1]
    without(model, [{"kind": "mlp", "block": 1}, {"kind": "attention", "block": 1}])
    added, weights = block.self_attn(hidden_states=hidden)
    assert weights is None
    inner = hidden if kind == "llama" else block.fc1(hidden)
    assert inner.shape[-1] == (16 if kind == "llama" else 1)
    for zeros in (added, (block.mlp if kind == "llama" else block.fc2)(inner)):
        assert zeros.shape == hidden.shape
        assert not zeros.any()


def test_dropping_twice_goes_on(four_blocks, text):
    model, both = four_blocks(), four_blocks()
    first = LLMDrop("attention", 1).compress(model, text())["dropped"]
    second = LLMDrop("attention", 1).compress(model, text())["dropped"]
    assert first[0]["block"] != second[0]["block"]
    drop(both, [*first, *second])
    assert torch.equal(logits(model, text()), logits(both, text()))
    with pytest.raises(ModelError, match="count=2"):
        LLMDrop("attention", 3).compress(model, text())


def test_what_was_decided_before_stays(four_blocks, text):
    """Quantized weights of dropped halves are zero on their grid, those of the others stay; so do masks."""
    model = four_blocks()
    linears = block_linears(model)
    for linear in linears.values():
        linear.prune(torch.arange(linear.weight.numel()).view(linear.shape) % 3 != 0)
        linear.quantize(rounded(linear.weight, Format("uint4", 4, symmetric=False), 8))
    before = {name: linear.weight.clone() for name, linear in linears.items()}
    found = LLMDrop("mlp", 2).compress(model, text())
    check_kept(model)
    gone = {f"model.layers.{one['block']}.mlp" for one in found["dropped"]}
    for name, linear in linears.items():
        if name.rpartition(".")[0] in gone:
            assert not linear.weight.any()
            assert not linear.fixed.quantized.values().any()
        else:
            assert torch.equal(linear.weight, before[name])


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KNOWN, "gemma2"])
def test_dropped_blocks_are_gone_and_the_rest_loads(four_blocks, text, tmp_path, kind):
    model, tokens = four_blocks(kind), text()
    found = LLMDrop("block", 2).compress(model, tokens)
    places = {one["block"] for one in found["dropped"]}
    order = sorted(range(4), key=lambda index: -found["similarities"]["block"][index])
    assert places == set(order[:2])
    # The dense model with those blocks passed over.
    skipping = four_blocks(kind)
    for index in places:
        block = named_blocks(skipping)[index][1]
        block.forward = lambda hidden, *rest, **named: hidden
    assert torch.equal(logits(model, tokens), logits(skipping, tokens))
    assert sum(value.numel() for value in model.parameters()) == found["parameters"] - found["parameters_dropped"]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.num_hidden_layers == 2
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        loaded.generate(tokens[:1, :5], use_cache=True, **options),
        model.generate(tokens[:1, :5], use_cache=False, **options),
    )


def test_calibration_is_needed(four_blocks):
    with pytest.raises(ModelError, match="calibration"):
        LLMDrop().compress(four_blocks(), None)


@pytest.mark.parametrize("what", ["attention", "block"])
def test_weights_that_are_not_finite(four_blocks, text, what):
    model = four_blocks()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        LLMDrop(what, 1).compress(model, text())


def test_half_precision(four_blocks, text):
    model = four_blocks().bfloat16()
    whole = similarities(four_blocks(), text())
    found = LLMDrop("joint", 3).compress(model, text())
    for kind, values in found["similarities"].items():
        assert values == pytest.approx(whole[kind], abs=0.02)
    expected = logits(model, text())
    assert torch.equal(logits(without(model, found["dropped"]), text()), expected)
