"""PERP: it recovers what pruning lost, undoes nothing that was decided, and leaves a model as it found it."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from thalweg.errors import BudgetError, ModelError, RecipeError, TrainingError
from thalweg.methods.pruning import PERP
from thalweg.models.compression import block_linears, check_kept
from thalweg.numerics.number_formats import Format, rounded

KINDS = ("mask_lora", "scale_lora", "lora_prune")


def gpt2(seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=37, n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    )


def opt(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTForCausalLM(
        OPTConfig(vocab_size=37, max_position_embeddings=12, word_embed_proj_dim=16, dropout=0.1, **sizes)
    )


def prune(model, sparsity=0.5):
    """Magnitudes, matrix by matrix."""
    for linear in block_linears(model).values():
        size = linear.weight.abs()
        linear.prune(size > size.flatten().kthvalue(int(sparsity * size.numel())).values)
    return model


def windows(count=32):
    """Each window repeats three tokens: there is something to learn."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(2, 37, (count, 3), generator=generator).repeat(1, 4)


def copies(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def loss_of(model, tokens):
    with torch.no_grad():
        return float(model.eval()(input_ids=tokens, labels=tokens).loss)


@pytest.mark.parametrize("lora", KINDS)
@pytest.mark.parametrize("make", [gpt2, opt])
def test_it_learns_and_the_zeros_stay(make, lora):
    model, tokens = prune(make()), windows()
    zeros = {name: linear.weight == 0 for name, linear in block_linears(model).items()}
    before, lost = copies(model), loss_of(model, tokens)
    found = PERP("30 steps", lora=lora, peak_lr=0.02).compress(model, tokens)
    check_kept(model)
    for name, linear in block_linears(model).items():
        assert torch.equal(linear.weight == 0, zeros[name])
        assert f"{name}.weight" in changed(model, before)
    assert loss_of(model, tokens) < lost - 0.05
    assert found["loss"][0] - found["loss"][1] > 0.05
    assert found["steps"] == 30
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_what_is_trained_is_counted(llama):
    model = prune(llama(tied=False))
    found = PERP("1 steps", rank=3).compress(model, windows())
    lora = sum(3 * sum(linear.shape) for linear in block_linears(model).values())
    assert found["trained"] == {"biases": 0, "norms": 5 * 16, "lora": lora, "head": 3 * (37 + 16)}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found["share"] == pytest.approx((80 + lora + 159) / total)
    found = PERP("1 steps", lora="none", head=False).compress(prune(gpt2()), windows())
    # Of each block: qkv, attention out, and both of the MLP; gain and bias of two norms, and of the last one.
    assert found["trained"] == {"biases": 2 * (48 + 16 + 64 + 16), "norms": 2 * 2 * 32 + 32, "lora": 0, "head": 0}
    found = PERP("1 steps", lora="none", norms=False, head=False).compress(prune(gpt2()), windows())
    assert found["trained"]["biases"] == 2 * (48 + 16 + 64 + 16) + 5 * 16


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({"lora": "none", "norms": False, "head": False}, (".bias",)),
        ({"lora": "none", "biases": False, "head": False}, ("ln_1.weight", "ln_2.weight", "ln_f.weight", ".bias")),
        ({"norms": False, "biases": False}, ("c_attn.weight", "c_proj.weight", "c_fc.weight")),
    ],
    ids=["biases", "norms", "lora"],
)
def test_all_else_is_the_same_bit_for_bit(options, ends):
    model = prune(gpt2())
    before = copies(model)
    PERP("3 steps", peak_lr=0.01, **options).compress(model, windows())
    touched = changed(model, before)
    assert touched
    assert all(name.endswith(ends) for name in touched)
    assert not any("wte" in name or "lm_head" in name for name in touched)


@pytest.mark.parametrize("mode", ["retrain", "reconstruct"])
def test_a_model_is_left_as_it_was_found(mode):
    dense = opt().train()
    model = prune(copy.deepcopy(dense))
    next(model.parameters()).requires_grad_(False)
    classes = {name: type(module) for name, module in model.named_modules()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    state, original = torch.random.get_rng_state(), copies(dense)
    PERP("2 steps", mode=mode).compress(model, windows(), dense)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == identities
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in [*model.modules(), *dense.modules()])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not changed(dense, original)


@pytest.mark.parametrize("mode", ["retrain", "reconstruct"])
def test_the_same_twice_and_other_with_another_seed(mode):
    def once(seed):
        model = prune(opt())
        found = PERP("3 steps", mode=mode, seed=seed).compress(model, windows(), opt())
        json.dumps(found)
        return found, copies(model)

    (found, state), (again, same), (_, other) = once(0), once(0), once(1)
    assert found == again
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert any(not torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("lora", KINDS)
def test_an_interruption_leaves_a_sound_model_with_what_was_learnt(lora):
    model, steps = prune(gpt2()), []
    before = copies(model)
    step = PERP("50 steps", lora=lora, peak_lr=0.01)

    def interrupt(taken, total, loss):
        steps.append((taken, total))
        if taken == 4:
            raise KeyboardInterrupt

    step.report = interrupt
    with pytest.raises(KeyboardInterrupt):
        step.compress(model, windows())
    assert steps == [(1, 50), (2, 50), (3, 50), (4, 50)]
    check_kept(model)
    assert len(changed(model, before)) > 20
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert math.isfinite(loss_of(model, windows()))


@pytest.mark.parametrize("lora", KINDS)
def test_of_quantized_layers_only_the_bias_is_trained(lora):
    model = prune(gpt2())
    linears = list(block_linears(model).values())
    quantized, others = linears[:4], linears[4:]
    for linear in quantized:
        linear.quantize(rounded(linear.weight, Format("int4", 4), 0))
    weights = [linear.weight.clone() for linear in linears]
    found = PERP("3 steps", lora=lora, peak_lr=0.01).compress(model, windows())
    check_kept(model)
    same = [torch.equal(linear.weight, weight) for linear, weight in zip(linears, weights, strict=True)]
    assert same == [True] * 4 + [False] * 4
    assert found["trained"]["lora"] == 16 * sum(sum(linear.shape) for linear in others)
    assert any("4 linear layers are quantized" in note for note in found["notes"])
    assert all("quantized" in linear.fixed.notes[-1] for linear in quantized)


def test_nothing_left_to_train_is_an_error():
    model = prune(gpt2())
    for linear in block_linears(model).values():
        linear.quantize(rounded(linear.weight, Format("int4", 4), 0))
    with pytest.raises(ModelError, match="8 linear layers are quantized"):
        PERP("3 steps", biases=False, norms=False).compress(model, windows())
    with pytest.raises(ModelError, match="embeddings"):
        PERP("3 steps", lora="none", biases=False, norms=False).compress(model, windows())
    with pytest.raises(RecipeError, match="nothing"):
        PERP(lora="none", biases=False, norms=False, head=False)


def test_zeros_that_nobody_recorded_stay_zero_too():
    model = prune(gpt2())
    for linear in block_linears(model).values():
        linear.fixed.mask = None
    zeros = {name: linear.weight == 0 for name, linear in block_linears(model).items()}
    found = PERP("5 steps", peak_lr=0.01).compress(model, windows())
    assert all(torch.equal(linear.weight == 0, zeros[name]) for name, linear in block_linears(model).items())
    assert any("8 linear layers have no recorded mask" in note for note in found["notes"])


def test_a_recorded_mask_counts_more_than_what_is_zero():
    """A weight that is kept and happens to be zero may be trained."""
    model = prune(gpt2())
    linear = next(iter(block_linears(model).values()))
    row, column = linear.fixed.mask.nonzero()[0].tolist()
    linear.weight[row, column] = 0.0
    PERP("5 steps", peak_lr=0.01).compress(model, windows())
    assert float(linear.weight[row, column]) != 0.0


def test_the_head_is_trained_only_where_its_table_is_its_own(llama):
    for tied in (True, False):
        model = prune(llama(tied=tied))
        before = copies(model)
        found = PERP("3 steps", lora="none", peak_lr=0.01).compress(model, windows())
        assert ("lm_head.weight" in changed(model, before)) is not tied
        assert "model.embed_tokens.weight" not in changed(model, before)
        assert any("embeddings" in note for note in found["notes"]) is tied
        assert found["trained"]["head"] == (0 if tied else 16 * (37 + 16))


def test_half_precision():
    model = prune(gpt2().bfloat16())
    lost = loss_of(model, windows())
    PERP("30 steps", peak_lr=0.01).compress(model, windows())
    check_kept(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert loss_of(model, windows()) < lost - 0.05


def test_reconstruction_brings_blocks_back_to_the_dense_ones():
    dense, tokens = opt(), windows()
    model = prune(copy.deepcopy(dense))
    reports, step = [], PERP("40 steps", mode="reconstruct", peak_lr=0.01)
    step.report = lambda *said: reports.append(said[:2])
    found = step.compress(model, tokens, dense)
    check_kept(model)
    assert found["steps"] == 80
    assert reports[0] == (1, 80)
    assert reports[-1] == (80, 80)
    assert [block["error_after"] < 0.5 * block["error_before"] for block in found["blocks"]] == [True, True]
    assert found["trained"]["head"] == 0

    def distance(one):
        with torch.no_grad():
            return float((one.eval()(tokens).logits - dense.eval()(tokens).logits).square().sum())

    assert distance(model) < 0.5 * distance(prune(copy.deepcopy(dense)))


def test_the_target_is_what_the_dense_block_makes_of_the_recovered_inputs():
    """With the second block dense there is nothing to recover in it, whatever the first one has become."""
    dense = gpt2()
    model = copy.deepcopy(dense)
    for name, linear in block_linears(model).items():
        if ".0." in name:
            linear.prune(linear.weight.abs() > 0.02)
    before = copies(model)
    found = PERP("3 steps", mode="reconstruct").compress(model, windows(), dense)
    assert found["blocks"][0]["error_before"] > 1e-4
    assert found["blocks"][1] == {"error_before": 0.0, "error_after": 0.0}
    assert all(".h.0." in name for name in changed(model, before))


def test_reconstruction_needs_the_dense_model(llama):
    model = prune(gpt2())
    for original, said in (
        (None, "needs the dense model"),
        (model, "needs the dense model"),
        (llama(), "other linear"),
    ):
        with pytest.raises(ModelError, match=said):
            PERP("1 steps", mode="reconstruct").compress(model, windows(), original)


def test_seconds_are_shared_by_the_blocks():
    model, reports = prune(gpt2()), []
    step = PERP("0.6s", mode="reconstruct")
    step.report = lambda *said: reports.append(said)
    found = step.compress(model, windows(), gpt2())
    assert found["steps"] == len(reports)
    assert [said[0] for said in reports] == list(range(1, len(reports) + 1))


def test_what_cannot_be_trained_on_is_said():
    for calibration in (None, torch.zeros(0, 12, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ModelError, match="calibration windows"):
            PERP("1 steps").compress(gpt2(), calibration)
    model = prune(gpt2())
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[0] = float("nan")
    with pytest.raises(ModelError, match=r"h\.1\.mlp\.c_fc\.bias"):
        PERP("1 steps").compress(model, windows())


def test_a_loss_that_is_not_finite_is_an_error_and_the_model_stays_sound():
    model = prune(gpt2())

    def overflow(module, arguments, output):
        """Logits are infinite once the last norm's gain has grown."""
        return output * float("inf") if float(model.transformer.ln_f.weight.detach().max()) > 1.02 else output

    hook = model.lm_head.register_forward_hook(overflow)
    with pytest.raises(TrainingError, match="lower peak_lr"):
        PERP("30 steps", peak_lr=0.01).compress(model, windows())
    hook.remove()
    check_kept(model)
    assert math.isfinite(loss_of(model, windows()))


def test_options_are_checked():
    for options in ({"lora": "dora"}, {"rank": 0}, {"mode": "both"}, {"batch": 1.5}, {"peak_lr": float("nan")}):
        with pytest.raises(RecipeError, match="not allowed"):
            PERP(**options)
    with pytest.raises(BudgetError, match="tokens"):
        PERP("1M tokens")


def test_how_many_windows_are_wanted():
    assert PERP().windows_wanted == 1600
    assert PERP("50 steps", batch=2).windows_wanted == 100
    assert PERP("50 steps", mode="reconstruct").windows_wanted == 128
    assert PERP("30s").windows_wanted == 512
