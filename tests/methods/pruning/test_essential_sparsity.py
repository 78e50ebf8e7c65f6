"""Essential sparsity: masks and knees that can be written down, and a curve against its model."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional

from thalweg.errors import DataError, ModelError, RecipeError
from thalweg.methods.pruning.essential_sparsity import EssentialSparsity, curve, kept_at, knee
from thalweg.models.compression import block_linears, check_kept
from thalweg.numerics.number_formats import Format, rounded

FIRST, SECOND = torch.tensor([[0.1, -0.2], [0.3, 0.4]]), torch.tensor([[-0.5, 0.6], [0.7, -0.8]])


def loss_of(model, windows):
    with torch.no_grad():
        found = model(input_ids=windows, use_cache=False).logits[:, :-1].flatten(0, 1)
    return float(functional.cross_entropy(found.double(), windows[:, 1:].flatten()))


def zeros(model):
    return {name: linear.weight == 0 for name, linear in block_linears(model).items()}


def state_of(model):
    return copy.deepcopy(model.state_dict())


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# -- masks ------------------------------------------------------------------------------------------------------------


def test_global_order_takes_the_smaller_matrix_and_layers_take_half_of_each():
    one, other = kept_at([FIRST, SECOND], 0.5, "global")
    assert not one.any()
    assert other.all()
    one, other = kept_at([FIRST, SECOND], 0.5, "layer")
    assert one.tolist() == other.tolist() == [[False, False], [True, True]]


def drawn(seed=0, shapes=((40, 30), (7, 50), (64, 64))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 10.0 ** (index - 3) for index, shape in enumerate(shapes)]


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.3, 0.5, 0.77, 0.999])
def test_masks_are_those_of_a_sort(sparsity):
    weights = drawn()
    everything = torch.cat([weight.flatten() for weight in weights]).abs()
    order = torch.sort(everything, stable=True).indices[: math.floor(sparsity * len(everything) + 1e-6)]
    expected = torch.ones(len(everything), dtype=torch.bool)
    expected[order] = False
    found = torch.cat([mask.flatten() for mask in kept_at(weights, sparsity)])
    assert torch.equal(found, expected)


def test_equal_magnitudes_do_not_prune_more_than_was_asked_for_and_masks_are_nested():
    weights = [torch.tensor([[0.5, -0.5, 0.5, 0.1], [0.5, 2.0, -2.0, 0.0]]), torch.full((3, 4), -0.5)]
    before = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    for count in range(1, 20):
        masks = kept_at(weights, count / 20)
        assert sum(int((~mask).sum()) for mask in masks) == count
        assert all(bool((old | ~mask).all()) for mask, old in zip(masks, before, strict=True))
        before = masks
    # The first of the equal ones.
    assert (~kept_at(weights, 4 / 20)[0]).tolist() == [[True, True, False, True], [False, False, False, True]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_masks_of_other_dtypes(dtype):
    weights = [weight.to(dtype) for weight in drawn()]
    expected = kept_at([weight.float() for weight in weights], 0.4)
    assert all(map(torch.equal, kept_at(weights, 0.4), expected))


def test_one_scale_for_all_changes_no_mask_and_one_for_a_matrix_changes_global_masks_only():
    weights = drawn()
    scaled = [weight * 7.3 for weight in weights]
    one = [weights[0] * 1000, *weights[1:]]
    for scope in ("global", "layer"):
        masks = kept_at(weights, 0.4, scope)
        assert all(map(torch.equal, masks, kept_at(scaled, 0.4, scope)))
        assert torch.equal(masks[0], kept_at(one, 0.4, scope)[0]) is (scope == "layer")


def test_masks_of_a_random_order_agree_as_much_as_they_are_dense():
    """cos = |m1 and m2| / sqrt(|m1| |m2|) of what is kept: 0.6 at 40% sparsity, beside which any agreement is read."""
    one, other = (kept_at(drawn(seed, ((300, 300),)), 0.4)[0] for seed in (0, 1))
    cosine = int((one & other).sum()) / math.sqrt(int(one.sum()) * int(other.sum()))
    assert cosine == pytest.approx(0.6, abs=0.01)


# -- the knee ---------------------------------------------------------------------------------------------------------

SCORES = [90.0, 90.1, 89.9, 89.8, 89.5, 88.6, 82.0]
TENTHS = [round(0.1 * index, 10) for index in range(7)]


def test_the_knee_of_the_sheet():
    assert knee(TENTHS, [-score for score in SCORES], 1.0) == 0.4


def test_a_loss_that_comes_back_is_beyond_the_knee():
    assert knee([0.0, 0.1, 0.2, 0.3], [3.0, 3.5, 3.0, 3.0], 0.1) == 0.0
    assert knee([0.0, 0.1, 0.2], [3.0, math.nan, 3.0], 0.1) == 0.0
    assert knee([0.0, 0.1, 0.2], [3.0, 3.01, 2.9], 0.02) == 0.2
    assert knee([0.3], [3.0], 0.0) == 0.3


@pytest.mark.parametrize(("sparsities", "losses"), [([], []), ([0.0, 0.1], [1.0]), ([0.1, 0.0], [1.0, 1.0])])
def test_what_is_no_curve(sparsities, losses):
    with pytest.raises(ModelError, match="no curve"):
        knee(sparsities, losses, 0.1)


# -- curve and model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_losses_of_the_curve_are_the_losses_of_pruned_models(four_blocks, text, kind, scope):
    model = four_blocks(kind)
    state = state_of(model)
    random = torch.get_rng_state()
    sparsities, losses = curve(model, text(), step=0.25, scope=scope)
    assert sparsities == [0.0, 0.25, 0.5, 0.75]
    assert same(model, state)
    assert torch.equal(torch.get_rng_state(), random)
    linears = list(block_linears(model).values())
    for sparsity, loss in zip(sparsities, losses, strict=True):
        other = four_blocks(kind)
        masks = kept_at([linear.weight for linear in linears], sparsity, scope)
        for linear, mask in zip(block_linears(other).values(), masks, strict=True):
            linear.weight[~mask] = 0.0
        assert loss == pytest.approx(loss_of(other, text()), abs=2e-5)
    assert losses[0] != losses[1] != losses[2]


def test_grids():
    model_steps = {0.05: 20, 0.1: 10, 0.3: 4, 0.999: 2}
    from thalweg.methods.pruning.essential_sparsity import _grid

    for step, count in model_steps.items():
        found = _grid(step)
        assert len(found) == count
        assert found[0] == 0.0
        assert found[-1] < 1.0
    assert _grid(0.05)[3] == 0.15


def test_the_curve_ends_beyond(four_blocks, text):
    model = four_blocks()
    _, whole = curve(model, text(), step=0.1)
    limit = sorted(loss - whole[0] for loss in whole)[6]
    _, short = curve(model, text(), step=0.1, beyond=limit * 0.999)
    over = [loss - whole[0] > limit * 0.999 for loss in whole]
    assert short == whole[: over.index(True) + 1]
    assert len(short) < len(whole)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_up_to_the_knee(four_blocks, text, scope):
    model = four_blocks()
    sparsities, losses = curve(four_blocks(), text(), step=0.1, scope=scope)
    # A tolerance that is reached somewhere in the middle, wherever this model's curve goes.
    tolerance = max(losses[:5]) - losses[0] + 1e-6
    found = EssentialSparsity(tolerance, 0.1, scope).compress(model, text())
    assert found["knee"] == knee(sparsities, losses, tolerance) >= 0.4
    assert found["losses"] == losses[: len(found["losses"])]
    assert found["sparsities"] == sparsities[: len(found["losses"])]
    masks = zeros(model)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(found["knee"] * total, abs=len(masks))
    assert loss_of(model, text()) <= losses[0] + tolerance
    assert found["layers"] == pytest.approx({name: float(mask.float().mean()) for name, mask in masks.items()})
    for name, linear in block_linears(model).items():
        assert torch.equal(linear.fixed.mask, ~masks[name])
    check_kept(model)


def test_no_tolerance_leaves_a_trained_model_alone(four_blocks, text):
    """Weights that the text was fitted with: any larger loss is beyond, so nothing is pruned and nothing is noted."""
    model = fitted(four_blocks(), text())
    state = state_of(model)
    found = EssentialSparsity(0.0, 0.2).compress(model, text())
    assert found["knee"] == 0.0
    assert found["losses"][1] > found["losses"][0]
    assert same(model, state)
    assert all(linear.fixed.mask is None for linear in block_linears(model).values())


def fitted(model, windows, steps=60):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(input_ids=windows, labels=windows, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_only_linears_of_the_blocks_are_touched(four_blocks, text):
    model = four_blocks("gpt2")
    state = state_of(model)
    EssentialSparsity(100.0, 0.3).compress(model, text())
    touched = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert touched == {f"{name}.weight" for name in block_linears(model)}


def test_what_was_decided_before_stays(four_blocks, text):
    """Pruned weights stay zero and come first in the order; quantized ones go to zero on their grid or stay."""
    model = four_blocks()
    linears = block_linears(model)
    for linear in linears.values():
        linear.prune(torch.arange(linear.weight.numel()).view(linear.shape) % 2 == 0)
        linear.quantize(rounded(linear.weight, Format("int8", 8), 0))
    earlier = zeros(model)
    before = {name: linear.weight.clone() for name, linear in linears.items()}
    found = EssentialSparsity(100.0, 0.25).compress(model, text())
    check_kept(model)
    assert found["losses"][0] == found["losses"][1] == found["losses"][2]
    assert found["knee"] == 0.75
    for name, mask in zeros(model).items():
        assert mask[earlier[name]].all()
        assert torch.equal(linears[name].weight[~mask], before[name][~mask])
    assert sum(int(mask.sum()) for mask in zeros(model).values()) == round(
        0.75 * sum(mask.numel() for mask in earlier.values())
    )


def test_a_curve_that_fails_leaves_the_model_as_it_was(four_blocks, text, monkeypatch):
    model = four_blocks()
    state = state_of(model)
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr("thalweg.methods.pruning.essential_sparsity.text_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        curve(model, text())
    assert same(model, state)


@pytest.mark.parametrize(
    "options", [{"tolerance": -0.1}, {"tolerance": math.nan}, {"step": 0}, {"step": 1.0}, {"scope": "row"}]
)
def test_options_out_of_range(options):
    with pytest.raises(RecipeError):
        EssentialSparsity(**options)


def test_text_is_needed(four_blocks, text):
    with pytest.raises(ModelError, match="text"):
        EssentialSparsity().compress(four_blocks(), None)
    with pytest.raises(DataError, match="two tokens"):
        EssentialSparsity().compress(four_blocks(), text()[:, :1])


def test_weights_and_losses_that_are_not_finite(four_blocks, text):
    model = four_blocks()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.inf
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj"):
        EssentialSparsity().compress(model, text())
    model = four_blocks()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(ModelError, match="loss on the calibration"):
        EssentialSparsity().compress(model, text())
