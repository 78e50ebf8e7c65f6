"""The contract that every compression method of the catalogue keeps, whatever its family."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

from thalweg import catalog
from thalweg.errors import ModelError, RecipeError
from thalweg.models.blocks import decoder_blocks
from thalweg.models.compressed_tensors import save_compressed
from thalweg.models.compression import block_linears, check_kept
from thalweg.models.folder import load, save
from thalweg.numerics.number_formats import Format, rounded

COMPRESSIONS = [name for name, card in catalog.load().items() if card.slot == "compression"]
# Options for models as small as these, given where a card has them; the defaults are for real ones.
SMALL = {"group": 8, "budget": "3 steps", "steps": 3, "drop": 1}
# What else than weights of block linears a method is about, and why. Embeddings are for none.
ALSO = {
    "perp": "trains all gains and biases, and the head",
    "awq": "moves scales into the norm or the layer in front",
    "llm_drop": "takes sub-layers out",
}
MODELS = {
    "llama": {"architecture": "llama"},
    "gpt2": {"architecture": "gpt2"},
    "opt": {"architecture": "opt"},
    "tied": {"architecture": "llama", "tied": True},
}
CALIBRATION = torch.randint(2, 61, (6, 12), generator=torch.Generator().manual_seed(0))

every_method = pytest.mark.parametrize("name", COMPRESSIONS)
every_model = pytest.mark.parametrize("kind", MODELS)


def method(name, **options):
    known = catalog.lookup(name).options
    return catalog.resolve(name)(**{key: value for key, value in {**SMALL, **options}.items() if key in known})


@pytest.fixture
def model_of(causal_model):
    def make(kind, **changes):
        return causal_model(**{**MODELS[kind], **changes})

    return make


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    """Bit for bit, NaN included."""
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(7.0), other[key].nan_to_num(7.0)) for key in one
    )


def refusal(name, model, calibration=CALIBRATION):
    """The ModelError that a method answers with, which leaves the model as it was and says what to do; None if none."""
    before = state_of(model)
    try:
        method(name).compress(model, calibration)
    except ModelError as error:
        assert same(before, state_of(model)), "refused, but not before something was changed"
        return error
    return None


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=CALIBRATION[:2], use_cache=False).logits


@every_method
@every_model
def test_it_is_deterministic_and_draws_nothing_from_the_global_state(name, kind, model_of):
    states, found = [], []
    for seed in (0, 1):
        model = model_of(kind)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        found.append(method(name).compress(model, CALIBRATION))
        assert torch.equal(before, torch.random.get_rng_state())
        states.append(state_of(model))
    assert same(*states)
    assert not same(states[0], state_of(model_of(kind)))
    assert json.loads(json.dumps(found[0], allow_nan=False)) == json.loads(json.dumps(found[1]))


@every_method
@every_model
def test_only_weights_of_linears_in_blocks_change(name, kind, model_of):
    model = model_of(kind)
    before, linears = state_of(model), {f"{linear}.weight" for linear in block_linears(model)}
    method(name).compress(model, CALIBRATION)
    for key, linear in block_linears(model).items():
        if linear.fixed.quantized is None and bool((linear.weight == 0).any()):
            assert torch.equal(linear.fixed.mask, linear.weight != 0), f"{key}: zeros that no later step knows of"
    after = state_of(model)
    changed = {key for key in before if key not in after or not torch.equal(before[key], after[key])}
    assert changed & linears
    if name in ALSO:
        # Names of what is in a block have its number in them. No method touches the embeddings.
        inside = {key for key in changed if any(part.isdigit() for part in key.split("."))}
        outside = {key for key in changed - inside if "norm" in key or "ln_f" in key or "lm_head" in key}
        assert changed == inside | (outside if name == "perp" else set())
        return
    assert changed <= linears
    if kind == "tied":
        assert model.lm_head.weight is model.model.embed_tokens.weight


@every_method
@every_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_stays_and_numbers_are_finite(name, kind, dtype, model_of):
    model = model_of(kind, dtype=dtype)
    found = method(name).compress(model, CALIBRATION)
    assert all(value.dtype == dtype and bool(value.isfinite().all()) for value in model.state_dict().values())
    assert bool(logits_of(model).isfinite().all())
    json.dumps(found, allow_nan=False)
    check_kept(model)


@every_method
@every_model
def test_the_model_is_left_as_it_is_in_all_but_weights(name, kind, model_of):
    model = model_of(kind).train()
    next(iter(model.parameters())).requires_grad_(False)
    asked = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    method(name).compress(model, CALIBRATION)
    assert all(module.training for module in model.modules())
    now = dict(model.named_parameters())
    assert all(now[key].requires_grad == value for key, value in asked.items() if key in now)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@every_method
@every_model
def test_it_keeps_the_zeros_of_a_pruner(name, kind, model_of):
    model = model_of(kind)
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for key, linear in block_linears(model).items():
        # More than a pruner is asked for, so that what it need not prune would show.
        masks[key] = torch.rand(linear.shape, generator=generator) > 0.8
        linear.prune(masks[key])
    refused = refusal(name, model)
    if refused:
        assert refused.fix
        return
    check_kept(model)
    for key, linear in block_linears(model).items():
        assert not bool(linear.weight[~masks[key]].any()), key
        assert not bool((linear.fixed.mask & ~masks[key]).any()), key
    assert bool(logits_of(model).isfinite().all())


@every_method
@every_model
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_keeps_the_grid_of_a_quantizer_or_says_what_to_do(name, kind, symmetric, model_of):
    model = model_of(kind)
    for linear in block_linears(model).values():
        linear.quantize(rounded(linear.weight, Format("int4", 4, symmetric), 8))
    grids = {key: linear.weight.clone() for key, linear in block_linears(model).items()}
    refused = refusal(name, model)
    if refused:
        assert any(word in refused.fix for word in ("before", "after", "leave out"))
        return
    check_kept(model)
    for key, linear in block_linears(model).items():
        moved = (linear.weight != grids[key]) & (linear.weight != 0)
        assert linear.fixed.quantized is not None
        assert not bool(moved.any()), key


@every_method
@every_model
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_a_model_error(name, kind, value, model_of):
    model = model_of(kind)
    list(block_linears(model).values())[-1].weight[1, 2] = value
    with pytest.raises(ModelError) as caught:
        method(name).compress(model, CALIBRATION)
    assert caught.value.fix


@every_method
def test_inputs_that_are_all_zero_are_no_crash(name, model_of):
    model = model_of("llama")
    model.get_input_embeddings().weight.data.zero_()
    refused = refusal(name, model)
    if refused:
        assert refused.fix
        return
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    check_kept(model)


@every_method
def test_a_model_without_blocks_and_missing_calibration_are_model_errors(name, model_of):
    with pytest.raises(ModelError):
        method(name).compress(nn.Sequential(nn.Linear(4, 4)), CALIBRATION)
    model = model_of("llama")
    before = state_of(model)
    refused = refusal(name, model, calibration=None)
    assert refused.fix if refused else not same(before, state_of(model))


@every_method
@every_model
def test_what_is_saved_loads_and_answers_the_same(name, kind, model_of, tmp_path):
    model = model_of(kind)
    method(name).compress(model, CALIBRATION)
    save(model, None, tmp_path)
    loaded, _ = load(tmp_path)
    assert type(loaded) is type(model)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=0)
    assert len(decoder_blocks(loaded)) == len(decoder_blocks(model))


@every_method
def test_a_copy_made_before_is_not_touched(name, model_of):
    model = model_of("llama")
    other = copy.deepcopy(model)
    before = state_of(other)
    method(name).compress(model, CALIBRATION)
    assert same(before, state_of(other))
    assert all(linear.fixed.mask is None and linear.fixed.quantized is None for linear in block_linears(other).values())


WRONG = [
    (name, key, value)
    for name in COMPRESSIONS
    for key, option in catalog.lookup(name).options.items()
    for value in (
        [None, *([option.low - 1] if option.low is not None else []), *([math.nan] if option.type == "float" else [])]
        + (["no such"] if option.choices else [])
    )
]


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_wrong_options_are_recipe_errors(name, key, value):
    with pytest.raises(RecipeError):
        method(name, **{key: value})


def test_exceptions_are_of_methods_with_a_reason():
    assert all(reason for reason in ALSO.values())
    # Names that are in no catalogue would excuse nobody; those of this family are here from the start.
    assert {"magnitude", "wanda", "sparsegpt"} <= set(COMPRESSIONS) - set(ALSO)


@pytest.mark.parametrize("name", [n for n in COMPRESSIONS if catalog.lookup(n).family == "quantization"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_comes_back_as_it_was_left(name, dtype, model_of, tmp_path):
    """Scales are of the type that files hold them in, so that nothing is rounded on the way to them."""
    pytest.importorskip("compressed_tensors", reason="needs the extra compress")
    model = model_of("llama").to(dtype)
    # The library cannot unpack the zero points of as few rows as these.
    method(name, symmetric=True).compress(model, CALIBRATION)
    assert {one.fixed.quantized.scale.dtype for one in block_linears(model).values()} == {dtype}
    told = save_compressed(model, None, tmp_path / "out")
    assert (told["layout"], told["largest_change"]) == ("compressed-tensors", 0)
    other = load(tmp_path / "out", dtype)[0]
    assert all(
        torch.equal(linear.weight, block_linears(other)[name].weight) for name, linear in block_linears(model).items()
    )
