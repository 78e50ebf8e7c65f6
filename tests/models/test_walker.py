"""The block walker: what stands in front of every block is what the model itself would have there."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thalweg.errors import ModelError
from thalweg.models import block_inputs
from thalweg.models.input_statistics import AbsoluteMean, Hessian, OutputError, SecondMoment
from thalweg.models.walker import walk

WINDOWS, CONTEXT = 7, 12
# No multiple of WINDOWS, so that the last batch is a smaller one.
AT_ONCE = 3


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(block_inputs, "BATCH_TOKENS", AT_ONCE * CONTEXT)


def tokens(windows=WINDOWS, seed=0):
    return torch.randint(2, 61, (windows, CONTEXT), generator=torch.Generator().manual_seed(seed))


def in_front(model, calibration):
    """Inputs of every block, and outputs of the last, in one pass of the whole model."""
    from thalweg.models.blocks import decoder_blocks

    found, last = [], []
    blocks = decoder_blocks(model)
    hooks = [block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(lambda _, inputs, output: last.append(output)))
    with torch.no_grad():
        own = model(input_ids=calibration, use_cache=False, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(found, own[:-1], strict=True))
    return found, last[0][0] if isinstance(last[0], tuple) else last[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "opt", "gpt_neox", "gemma3_text"])
def test_hidden_states_are_the_models_own(causal_model, name, attention):
    model = causal_model(name, attention=attention)
    calibration = tokens()
    own, last = in_front(model, calibration)
    seen = 0
    for block in walk(model, calibration):
        given = list(block.batches())
        assert [len(batch) for batch in given] == [3, 3, 1]
        torch.testing.assert_close(torch.cat(given), own[block.index], rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            outputs = torch.cat([block.run(batch) for batch in given])
        after = own[block.index + 1] if block.index + 1 < block.count else last
        torch.testing.assert_close(outputs, after, rtol=1e-5, atol=1e-5)
        assert model.get_submodule(block.name) is block.module
        seen += 1
    assert seen == block.count == 2


def test_every_architecture_of_the_house_is_walked(architectures):
    [mark] = [mark for mark in test_hidden_states_are_the_models_own.pytestmark if mark.args[0] == "name"]
    assert mark.args[1] == architectures


def test_changes_reach_the_blocks_behind(causal_model):
    model, calibration = causal_model("llama"), tokens()
    before, _ = in_front(model, calibration)
    for block in walk(model, calibration):
        if block.index == 1:
            after, _ = in_front(model, calibration)
            torch.testing.assert_close(torch.cat(list(block.batches())), after[1], rtol=1e-5, atol=1e-5)
            assert (after[1] - before[1]).abs().max() > 0.1
        for linear in block.linears.values():
            linear.weight.mul_(0.5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_statistics_are_those_of_all_tokens_at_once(causal_model, name):
    model, calibration = causal_model(name), tokens()
    own, _ = in_front(model, calibration)
    for block in walk(model, calibration):
        inputs = {}
        hooks = [
            linear.module.register_forward_pre_hook(
                lambda _, given, inner=inner, inputs=inputs: inputs.__setitem__(inner, given[0].flatten(0, -2))
            )
            for inner, linear in block.linears.items()
        ]
        with torch.no_grad():
            block.run(own[block.index])
        for hook in hooks:
            hook.remove()
        for kind, of_all in (
            (SecondMoment, lambda x: x.square().mean(0)),
            (AbsoluteMean, lambda x: x.abs().mean(0)),
            (Hessian, lambda x: x.T @ x / len(x)),
        ):
            observers = {inner: kind() for inner in block.linears}
            block.observe(observers)
            assert set(inputs) == set(observers)
            for inner, observer in observers.items():
                assert observer.tokens == WINDOWS * CONTEXT
                torch.testing.assert_close(observer.value, of_all(inputs[inner]), rtol=1e-4, atol=1e-5)


def test_statistics_are_float32_whatever_the_model_computes_in(causal_model):
    for dtype in (torch.bfloat16, torch.float64):
        block = next(walk(causal_model("llama", dtype=dtype), tokens()))
        assert next(block.batches()).dtype == dtype
        hessian = Hessian()
        block.observe({"mlp.down_proj": hessian})
        assert hessian.value.dtype == torch.float32


class Allocated(TorchDispatchMode):
    """The most bytes of tensors alive at once of those that are made inside, but for those that lie in a file."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)}
        result = function(*arguments, **(keywords or {}))
        if function is torch.ops.aten.from_file.default:
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in given:
                storage = leaf.untyped_storage()
                self.alive += storage.nbytes()
                self.most = max(self.most, self.alive)
                weakref.finalize(storage, self.freed, storage.nbytes())
        return result

    def freed(self, size):
        self.alive -= size


def most_allocated(model, windows, keep=False):
    calibration, kept = tokens(windows), []
    gc.collect()
    with Allocated() as allocated:
        for block in walk(model, calibration):
            block.observe({name: Hessian() for name in block.linears})
            kept += [batch for batch in block.batches() if keep]
    return allocated.most


def test_memory_does_not_grow_with_the_number_of_windows(causal_model):
    model = causal_model("llama")
    few, many = most_allocated(model, 2 * AT_ONCE), most_allocated(model, 40 * AT_ONCE)
    states = 40 * AT_ONCE * CONTEXT * 16 * 4
    assert many == few > AT_ONCE * CONTEXT * 16 * 4
    # That the measure sees what is held.
    assert most_allocated(model, 40 * AT_ONCE, keep=True) - few > states


def test_the_mapped_file_goes_with_the_walk(causal_model, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    walking = walk(causal_model("llama"), tokens())
    next(walking)
    [folder] = tmp_path.iterdir()
    assert (folder / "hidden").stat().st_size == WINDOWS * CONTEXT * 16 * 4
    walking.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"],
                   ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]),
        ("gpt2", [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]]),
        ("opt", [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.out_proj"], ["fc1"],
                 ["fc2"]]),
        ("gpt_neox", [["attention.query_key_value"], ["attention.dense"], ["mlp.dense_h_to_4h"],
                      ["mlp.dense_4h_to_h"]]),
    ],
)  # fmt: skip
def test_groups_are_in_the_order_of_the_calls(causal_model, name, expected):
    for block in walk(causal_model(name), tokens()):
        assert [sorted(group) for group in block.groups()] == [sorted(group) for group in expected]


def test_going_on_measures_errors_of_what_was_changed(causal_model):
    model, calibration = causal_model("llama"), tokens()
    blocks = []
    for block in walk(model, calibration):
        blocks.append(block)
        if block.index == 0:
            block.linears["mlp.down_proj"].weight.mul_(0.9)
            block.linears["self_attn.o_proj"].weight.zero_()
    # |0.9 Wx - Wx|^2 / |Wx|^2 whatever the inputs, and everything lost.
    assert blocks[0].errors == pytest.approx({"mlp.down_proj": 0.01, "self_attn.o_proj": 1.0}, rel=1e-5)
    assert blocks[1].errors == {}


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_last_block_is_left_with_the_first_batch(causal_model, blocks):
    """Nobody is waiting for its outputs; errors are still measured."""
    calls = []
    for block in walk(causal_model("llama", num_hidden_layers=blocks), tokens()):
        calls.append(0)
        down = block.linears["mlp.down_proj"]
        before = down.weight.clone()
        down.weight[:, ::2] = 0.0
        inputs = []
        down.module.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0].flatten(0, -2)))
        block.module.register_forward_hook(lambda *_: calls.__setitem__(-1, calls[-1] + 1))
    assert calls == [-(-WINDOWS // AT_ONCE)] * (blocks - 1) + [1]
    assert len(inputs[0]) == AT_ONCE * CONTEXT
    lost, whole = ((inputs[0] @ weight.T).square().sum() for weight in (down.weight - before, before))
    assert block.errors["mlp.down_proj"] == pytest.approx(float(lost / whole), rel=1e-4)


def test_blocks_may_be_one_module(causal_model):
    model = causal_model("llama", num_hidden_layers=3)
    model.model.layers[2] = model.model.layers[0]
    with torch.no_grad():
        own = model(input_ids=tokens(), use_cache=False, output_hidden_states=True).hidden_states
    for block in walk(model, tokens()):
        torch.testing.assert_close(torch.cat(list(block.batches())), own[block.index], rtol=1e-5, atol=1e-5)
    assert block.index == 2


@pytest.mark.parametrize("inner", ["self_attn", "mlp", "mlp.act_fn", ""])
def test_a_module_of_a_block_is_run_by_itself(causal_model, inner):
    """On what it is given in the block, as often as asked, and nothing else is."""
    model = causal_model("llama")
    for block in walk(model, tokens()):
        module = block.module.get_submodule(inner)
        wanted, after = [], []
        hook = module.register_forward_hook(lambda _, given, found, wanted=wanted: wanted.append(found))
        with torch.no_grad():
            for hidden in block.batches():
                block.run(hidden)
        hook.remove()
        runs = list(block.runs_of(inner))
        block.module.register_forward_hook(lambda *_, after=after: after.append(1))
        with torch.no_grad():
            for run, expected in zip(runs, wanted, strict=True):
                expected = expected[0] if isinstance(expected, tuple) else expected
                assert torch.equal(run(), expected)
                assert torch.equal(run(), expected)
        assert len(after) == (0 if inner else 2 * len(wanted))
        assert not module._forward_pre_hooks


class InPlace(nn.Module):
    """Changes what it is given."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden.mul_(0.5))


class Listed(nn.Module):
    """Its parts stand in a list, which is never called itself."""

    def __init__(self, inner):
        super().__init__()
        self.parts = nn.ModuleList([inner])

    def forward(self, hidden):
        return self.parts[0](hidden)


def test_a_module_that_changes_its_inputs_runs_the_same_again(causal_model):
    model = causal_model("llama")
    model.model.layers[0].mlp = InPlace(model.model.layers[0].mlp)
    for run in next(walk(model, tokens())).runs_of("mlp"):
        assert torch.equal(run(), run())


def test_hooks_that_a_module_has_are_applied_once(causal_model):
    model = causal_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda _, given: (given[0] * 0.5,))
    block = next(walk(model, tokens()))
    wanted = []
    mlp.register_forward_hook(lambda _, given, found: wanted.append(found))
    with torch.no_grad():
        for hidden in block.batches():
            block.run(hidden)
        for run, expected in zip(block.runs_of("mlp"), list(wanted), strict=True):
            assert torch.equal(run(), expected)


def test_of_a_module_that_is_not_called_the_one_around_it_is_run(causal_model):
    model = causal_model("llama")
    model.model.layers[0].mlp = Listed(model.model.layers[0].mlp)
    block = next(walk(model, tokens()))
    with torch.no_grad():
        inner, around = ([run() for run in block.runs_of(name)] for name in ("mlp.parts", "mlp"))
    assert len(inner) == len(around) == 3
    assert all(torch.equal(one, other) for one, other in zip(inner, around, strict=True))


def test_functions_of_all_batches_may_be_kept(causal_model):
    """Each has its own inputs, and what they are does not depend on the mode of the model."""
    model = causal_model("opt", dropout=0.5)
    block = next(walk(model, tokens()))
    with torch.no_grad():
        one_by_one = [run() for run in block.runs_of("self_attn")]
        model.train()
        kept = list(block.runs_of("self_attn"))
        model.eval()
        assert all(torch.equal(run(), found) for run, found in zip(kept, one_by_one, strict=True))


@pytest.mark.parametrize("width", [1, 100, 128, 129, 300])
def test_second_moments_are_symmetric_at_any_width(width):
    """They are summed up in strips, from their diagonal block on."""
    inputs = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    hessian = Hessian()
    for part in inputs.split(20):
        hessian.see(part)
    torch.testing.assert_close(hessian.value, inputs.T @ inputs / 50, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hessian.value, hessian.value.T, rtol=1e-6, atol=1e-7)


def test_errors_are_of_the_inputs_that_now_reach_the_layer(causal_model):
    model, calibration = causal_model("llama"), tokens()
    for block in walk(model, calibration):
        if block.index == 0:
            for inner in ("mlp.up_proj", "mlp.down_proj"):
                block.linears[inner].weight[:, ::2] = 0.0
            changed, first = block.linears["mlp.down_proj"], block
            before = block.before("mlp.down_proj").clone()
    inputs = []
    hook = changed.module.register_forward_pre_hook(lambda _, given: inputs.append(given[0].flatten(0, -2)))
    with torch.no_grad():
        model(input_ids=calibration, use_cache=False)
    hook.remove()
    lost, whole = ((inputs[0] @ weight.T).square().sum() for weight in (changed.weight - before, before))
    assert first.errors["mlp.down_proj"] == pytest.approx(float(lost / whole), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_batches_after_the_first_end_with_the_last_observed(causal_model, name, monkeypatch):
    monkeypatch.setattr("thalweg.models.block_inputs.BATCH_TOKENS", tokens().shape[1])
    for block in walk(causal_model(name), tokens()):
        order = [inner for group in block.groups() for inner in group]
        for wanted in (order, order[:1], []):
            ended: list[int] = []
            hook = block.module.register_forward_hook(lambda *_, ended=ended: ended.append(1))
            moments = {inner: SecondMoment() for inner in wanted}
            block.observe(moments)
            hook.remove()
            assert [moment.tokens for moment in moments.values()] == [tokens().numel()] * len(wanted)
            assert len(ended) == (1 if wanted else len(tokens()))


def test_errors_of_many_tokens_are_those_of_some_at_even_distances():
    generator = torch.Generator().manual_seed(0)
    inputs, before = torch.randn(2000, 6, generator=generator), torch.randn(4, 6, generator=generator)
    after = before * torch.tensor([1.0, 0.9, 1.0, 0.0])[:, None]
    found = OutputError(before, after, at_most=64)
    found.see(inputs)
    some = inputs[::31]  # 2000 // 64
    lost, whole = ((some @ weight.T).square().sum() for weight in (after - before, before))
    assert (found.lost, found.whole) == (pytest.approx(float(lost)), pytest.approx(float(whole)))


def test_the_walk_changes_nothing_by_itself(causal_model):
    model = causal_model("llama").train()
    model.lm_head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    for block in walk(model, tokens()):
        block.observe({name: SecondMoment() for name in block.linears})
        block.groups()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert [module.training for module in (model, block.module, model.lm_head)] == [True, True, False]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off(causal_model):
    model = causal_model("opt", dropout=0.5).train()
    first, second = ([torch.cat(list(block.batches())) for block in walk(model, tokens())] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_blocks_before_the_start_are_gone_through(causal_model):
    model, calibration = causal_model("llama", num_hidden_layers=3), tokens()
    own, _ = in_front(model, calibration)
    found = [(block.index, torch.cat(list(block.batches()))) for block in walk(model, calibration, start=1)]
    assert [index for index, _ in found] == [1, 2]
    for index, hidden in found:
        torch.testing.assert_close(hidden, own[index], rtol=1e-5, atol=1e-5)
    assert [block.index for block in walk(model, None, start=2)] == [2]


def test_without_calibration_there_are_blocks_without_inputs(causal_model):
    model = causal_model("gpt2")
    blocks = list(walk(model, None))
    assert [(block.index, block.count, block.name) for block in blocks] == [
        (0, 2, "transformer.h.0"),
        (1, 2, "transformer.h.1"),
    ]
    assert list(blocks[0].linears) == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    with pytest.raises(AssertionError, match="no calibration inputs"):
        next(blocks[0].batches())


def test_a_full_disk_is_said_before_it_is_written_to(causal_model, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ModelError, match="no room for 0 MB of hidden states") as caught:
        next(walk(causal_model("llama"), tokens()))
    assert "TMPDIR" in caught.value.fix


def test_a_window_of_calibration_is_enough(causal_model):
    model, calibration = causal_model("gemma3_text"), tokens(1)
    own, _ = in_front(model, calibration)
    for block in walk(model, calibration):
        torch.testing.assert_close(torch.cat(list(block.batches())), own[block.index], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [nn.Linear(3, 3), nn.ModuleList([nn.LayerNorm(3)]), nn.Sequential(nn.ModuleList([nn.Linear(3, 3), nn.ReLU()]))],
)
def test_a_model_without_blocks_is_refused(model):
    with pytest.raises(ModelError, match="no decoder blocks"):
        next(walk(model, None))


@pytest.mark.parametrize(
    ("weight", "value", "said"),
    [
        ("model.embed_tokens", "nan", "outputs of the embeddings"),
        ("model.layers.0.mlp.up_proj", "nan", "weights of model.layers.0.mlp.up_proj"),
        ("model.layers.1.mlp.down_proj", "inf", "weights of model.layers.1.mlp.down_proj"),
        ("model.layers.0.post_attention_layernorm", "nan", "outputs of model.layers.0"),
        ("model.layers.1.mlp.down_proj", "1e38", "outputs of model.layers.1"),
    ],
)
@pytest.mark.parametrize("calibration", [torch.arange(2, 26).view(2, 12), None])
def test_what_is_not_finite_is_refused_where_it_begins(causal_model, weight, value, said, calibration):
    model = causal_model("llama")
    model.get_submodule(weight).weight.data[2:] = float(value)
    if calibration is None and said.startswith("outputs"):
        assert len(list(walk(model, None))) == 2
        return
    with pytest.raises(ModelError, match=f"The {said} are not finite"):
        list(walk(model, calibration))


def test_what_differs_from_window_to_window_is_refused():
    """Bloom's alibi has an entry for every head of every window: recorded once, it would serve the wrong one."""
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=16, n_layer=2, n_head=2)).eval()
    with pytest.raises(ModelError, match="something of its own for every window"):
        next(walk(model, torch.arange(24).view(3, 8)))
