"""The forms of low-rank change: effective weights, merges, gradients and zeros, as numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from thalweg.methods.pruning.masked_lora import LoRA, MaskLoRA, ScaleLoRA, adapted
from thalweg.models.linears import Linear

W = torch.tensor([[1.0, 0.0, -2.0], [0.0, 3.0, 0.0]])
KEPT = torch.tensor([[1.2, 0.0, -1.4], [0.0, 3.8, 0.0]])
DENSE = torch.tensor([[1.2, 0.4, -1.4], [0.4, 3.8, 1.2]])
X = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, 1.0]])


def by_hand(kind):
    """r = 1, s = 2, B = [.1, .2]^T, A = [1, 2, 3] on the pruned W."""
    form = kind(W, W != 0, rank=1, alpha=2.0)
    with torch.no_grad():
        form.A.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        form.B.copy_(torch.tensor([[0.1], [0.2]]))
    return form


def drawn(kind, weight, seed=0, rank=4):
    """A form whose matrices are not at their start."""
    generator = torch.Generator().manual_seed(seed)
    form = ScaleLoRA(weight, rank) if kind is ScaleLoRA else kind(weight, weight != 0, rank, 8.0, generator)
    with torch.no_grad():
        form.B.add_(torch.randn(form.B.shape, generator=generator))
    return form


def pruned_linear(conv1d=False, bias=True, inputs=12, outputs=20):
    """A linear layer with half of its weights zero."""
    generator = torch.Generator().manual_seed(3)
    module = Conv1D(outputs, inputs) if conv1d else nn.Linear(inputs, outputs, bias=bias)
    linear = Linear("one", module)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(outputs, inputs, generator=generator))
        if module.bias is not None:
            module.bias.copy_(torch.randn(outputs, generator=generator))
    linear.prune(torch.rand(outputs, inputs, generator=generator) < 0.5)
    return linear


def test_mask_lora_by_hand():
    form = by_hand(MaskLoRA)
    torch.testing.assert_close(form(W), KEPT)
    torch.testing.assert_close(form.merged(W), KEPT)
    torch.testing.assert_close(form.outputs(X, W, None), X @ KEPT.mT)


def test_lora_by_hand_is_dense_in_training_and_masked_when_merged():
    form = by_hand(LoRA)
    torch.testing.assert_close(form(W), DENSE)
    torch.testing.assert_close(form.merged(W), KEPT)
    torch.testing.assert_close(form.outputs(X, W, None), X @ DENSE.mT)
    form.mask = None
    torch.testing.assert_close(form.merged(W), DENSE)


def test_scale_lora_starts_at_the_weight_itself():
    form = ScaleLoRA(W, rank=4)
    assert torch.equal(form(W), W)
    assert float(form.A.detach().min()) == float(form.B.detach().max()) == 0.5
    other = ScaleLoRA(W, rank=3)
    torch.testing.assert_close(other(W), W)


@pytest.mark.parametrize("kind", [LoRA, MaskLoRA])
def test_lora_starts_at_the_weight_with_a_uniform_a(kind):
    weight = pruned_linear(inputs=100, outputs=30).weight
    form = kind(weight, weight != 0, 16, 32.0, torch.Generator().manual_seed(0))
    assert torch.equal(form(weight), weight)
    assert float(form.A.detach().abs().max()) <= 0.1
    assert float(form.A.detach().std()) == pytest.approx(0.2 / 12**0.5, rel=0.05)
    assert form.scale == 2.0
    assert torch.equal(form.A, kind(weight, weight != 0, 16, 32.0, torch.Generator().manual_seed(0)).A)


@pytest.mark.parametrize("kind", [LoRA, MaskLoRA, ScaleLoRA])
def test_as_many_numbers_as_two_thin_matrices(kind):
    weight = torch.ones(20, 12)
    form = drawn(kind, weight, rank=5)
    assert sum(one.numel() for one in form.parameters()) == 5 * (20 + 12)


@pytest.mark.parametrize("kind", [LoRA, MaskLoRA, ScaleLoRA])
def test_zeros_stay_where_they_are(kind):
    linear = pruned_linear()
    zeros = linear.weight == 0
    with adapted([(linear, drawn(kind, linear.weight))]):
        pass
    assert torch.equal(linear.weight == 0, zeros)
    assert 0.4 < float(zeros.float().mean()) < 0.6
    assert linear.broken() is None


@pytest.mark.parametrize("conv1d", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("kind", [MaskLoRA, ScaleLoRA])
def test_merging_changes_no_output(kind, conv1d):
    linear = pruned_linear(conv1d)
    inputs = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1))
    before = linear.module(inputs)
    with adapted([(linear, drawn(kind, linear.weight))]):
        in_training = linear.module(inputs)
    torch.testing.assert_close(linear.module(inputs), in_training, rtol=1e-5, atol=1e-5)
    assert float((in_training - before).detach().abs().max()) > 0.5


@pytest.mark.parametrize("conv1d", [False, True], ids=["linear", "conv1d"])
def test_merging_lora_into_a_pruned_weight_makes_the_outputs_jump(conv1d):
    linear = pruned_linear(conv1d)
    form = drawn(LoRA, linear.weight)
    inputs = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(1))
    with adapted([(linear, form)]):
        in_training = linear.module(inputs)
    lost = inputs @ (form.scale * ~form.mask * (form.B @ form.A)).mT
    assert float(lost.detach().abs().max()) > 0.5
    torch.testing.assert_close(in_training - linear.module(inputs), lost, rtol=1e-4, atol=1e-4)


def test_without_zeros_mask_lora_is_lora():
    weight = torch.randn(20, 12, generator=torch.Generator().manual_seed(2))
    masked, plain = drawn(MaskLoRA, weight), drawn(LoRA, weight)
    assert torch.equal(masked(weight), plain(weight))
    assert torch.equal(masked.merged(weight), plain.merged(weight))


def test_gradients_of_mask_lora():
    weight = pruned_linear().weight.double()
    form = drawn(MaskLoRA, weight).double()
    inputs = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = form.outputs(inputs, weight, None)
    ahead = torch.cos(outputs.detach())
    (outputs.sin()).sum().backward()
    masked = (ahead.mT @ inputs) * (weight != 0)
    torch.testing.assert_close(form.B.grad, form.scale * masked @ form.A.detach().mT)
    torch.testing.assert_close(form.A.grad, form.scale * form.B.detach().mT @ masked)


def test_gradients_of_scale_lora():
    weight = pruned_linear().weight.double()
    form = drawn(ScaleLoRA, weight).double()
    inputs = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    form.outputs(inputs, weight, None).sum().backward()
    ahead = torch.ones(9, 20, dtype=torch.float64).mT @ inputs * weight
    torch.testing.assert_close(form.B.grad, ahead @ form.A.detach().mT)


def test_half_precision_merges_to_what_it_computed_with():
    linear = pruned_linear()
    linear.module.bfloat16()
    form = drawn(MaskLoRA, linear.weight)
    inputs = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    with adapted([(linear, form)]):
        in_training = linear.module(inputs)
    assert in_training.dtype == torch.bfloat16
    assert form.A.dtype == torch.float32
    assert torch.equal(linear.module(inputs), in_training)


def test_a_form_is_a_parametrization():
    linear = pruned_linear()
    form = drawn(MaskLoRA, linear.weight)
    wanted = form.merged(linear.weight)
    parametrize.register_parametrization(linear.module, "weight", form)
    torch.testing.assert_close(linear.module.weight, wanted)
    parametrize.remove_parametrizations(linear.module, "weight")
    torch.testing.assert_close(linear.weight, wanted)


def test_an_interruption_merges_and_leaves_nothing_behind():
    linear, own = pruned_linear(), []
    hook = linear.module.register_forward_hook(lambda *_: own.append(1))
    form = drawn(MaskLoRA, linear.weight)
    wanted = form.merged(linear.weight)
    weight, names = linear.module.weight, set(vars(linear.module))

    def interrupted():
        with adapted([(linear, form)]):
            linear.module(torch.zeros(1, 12))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(linear.weight, wanted)
    assert linear.module.weight is weight
    assert set(vars(linear.module)) == names
    assert type(linear.module) is nn.Linear
    assert own == [1]
    hook.remove()


def test_a_forward_of_the_modules_own_is_put_back():
    linear = pruned_linear()

    def own(inputs):
        return "own"

    linear.module.forward = own
    with adapted([(linear, drawn(MaskLoRA, linear.weight))]):
        assert isinstance(linear.module(torch.zeros(1, 12)), torch.Tensor)
    assert linear.module(torch.zeros(1, 12)) == "own"
