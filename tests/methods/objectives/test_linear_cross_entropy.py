"""The fused linear cross-entropy against the plain one: values, gradients, memory and its promise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.errors import TrainingError
from thalweg.methods.objectives.linear_cross_entropy import linear_cross_entropy, with_normaliser

TOKENS, WIDTH, VOCABULARY = 50, 8, 31


def problem(dtype=torch.float32, ignored=True, tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    if ignored:
        targets[::7] = -100
    return hidden, weight, targets


def gradients(losses, coefficients, *inputs):
    return torch.autograd.grad((losses * coefficients).sum(), inputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 25, 50, 1000])
@pytest.mark.parametrize("ignored", [False, True])
def test_equals_plain_cross_entropy(weighted, chunk, ignored):
    hidden, weight, targets = problem(ignored=ignored)
    coefficients = torch.linspace(-1.0, 2.0, TOKENS) if weighted else torch.tensor(1 / 37)
    losses = linear_cross_entropy(hidden, weight, targets, chunk, weighted)
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, plain, rtol=1e-6, atol=1e-6)
    ours = gradients(losses, coefficients, hidden, weight)
    theirs = gradients(plain, coefficients, hidden, weight)
    for one, two in zip(ours, theirs, strict=True):
        assert (one - two).norm() < 1e-6 * two.norm()


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted):
    hidden, weight, targets = problem(torch.float64, tokens=6)

    def function(hidden, weight):
        losses = linear_cross_entropy(hidden, weight, targets, 4, weighted)
        return losses if weighted else losses.sum()

    assert torch.autograd.gradcheck(function, (hidden, weight))


@pytest.mark.parametrize("weighted", [False, True])
def test_all_ignored_and_no_tokens(weighted):
    for tokens in (5, 0):
        hidden, weight, targets = problem(tokens=tokens)
        losses = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), 3, weighted)
        assert losses.tolist() == [0.0] * tokens
        for gradient in gradients(losses, 1.0, hidden, weight):
            assert not gradient.any()


@pytest.mark.parametrize("weighted", [False, True])
def test_only_what_is_asked_for(weighted):
    hidden, weight, targets = problem()
    full = gradients(linear_cross_entropy(hidden, weight, targets, 16, weighted), 1.0, hidden, weight)
    only_hidden = linear_cross_entropy(hidden, weight.detach(), targets, 16, weighted)
    only_weight = linear_cross_entropy(hidden.detach(), weight, targets, 16, weighted)
    assert torch.equal(gradients(only_hidden, 1.0, hidden)[0], full[0])
    assert torch.equal(gradients(only_weight, 1.0, weight)[0], full[1])
    with torch.no_grad():
        silent = linear_cross_entropy(hidden, weight, targets, 16, weighted)
    assert not silent.requires_grad
    assert torch.equal(silent, only_hidden.detach())


@pytest.mark.parametrize("weighted", [False, True])
def test_normaliser_and_its_penalty(weighted):
    hidden, weight, targets = problem(torch.float64)
    losses, normaliser = with_normaliser(hidden, weight, targets, 16, weighted, z_coefficient=0.3)
    assert not normaliser.requires_grad
    logits = hidden @ weight.T
    torch.testing.assert_close(normaliser, logits.logsumexp(-1).detach())
    plain = F.cross_entropy(logits, targets, reduction="none") + 0.3 * logits.logsumexp(-1).square() * (targets != -100)
    torch.testing.assert_close(losses, plain)
    ours, theirs = gradients(losses, 0.2, hidden, weight), gradients(plain, 0.2, hidden, weight)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


def test_the_promise_is_checked():
    hidden, weight, targets = problem()
    losses = linear_cross_entropy(hidden, weight, targets, 16)
    with pytest.raises(RuntimeError, match="promised one upstream gradient"):
        (losses * torch.linspace(0.5, 1.5, TOKENS)).sum().backward()


def test_the_promise_does_not_speak_of_ignored_tokens():
    hidden, weight, targets = problem()
    valid = targets != -100
    masked = linear_cross_entropy(hidden, weight, targets, 16)[valid].mean()
    plain = F.cross_entropy(hidden @ weight.T, targets)
    for one, two in zip(
        torch.autograd.grad(masked, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)), strict=True
    ):
        assert (one - two).norm() < 1e-6 * two.norm()


@pytest.mark.parametrize("weighted", [False, True])
def test_backward_twice_adds_up(weighted):
    hidden, weight, targets = problem()
    loss = linear_cross_entropy(hidden, weight, targets, 16, weighted).mean()
    loss.backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(hidden.grad, 2 * once[0])
    torch.testing.assert_close(weight.grad, 2 * once[1])


@pytest.mark.parametrize("weighted", [False, True])
def test_bfloat16_hidden_states_under_autocast(weighted):
    hidden, weight, targets = problem()
    rough = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = linear_cross_entropy(rough, weight, targets, 16, weighted)
    assert losses.dtype == torch.float32
    grad_hidden, grad_weight = gradients(losses, 1 / TOKENS, rough, weight)
    assert grad_hidden.dtype == torch.bfloat16
    assert grad_weight.dtype == torch.float32
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    exact = gradients(plain, 1 / TOKENS, hidden, weight)
    torch.testing.assert_close(losses, plain, rtol=0.03, atol=0.05)
    assert (grad_hidden.float() - exact[0]).norm() < 0.02 * exact[0].norm()
    assert (grad_weight - exact[1]).norm() < 0.02 * exact[1].norm()


@pytest.mark.parametrize("weighted", [False, True])
def test_large_and_lopsided_logits_stay_exact(weighted):
    hidden, weight, targets = problem(torch.float32)
    huge = (hidden * 60).detach().requires_grad_()
    losses = linear_cross_entropy(huge, weight, targets, 16, weighted)
    exact = F.cross_entropy(huge.double() @ weight.double().T, targets, reduction="none")
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients(losses, 1.0, huge, weight))


def test_never_more_than_a_chunk_of_logits():
    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tensor.shape[1] == VOCABULARY:
                    self.rows = max(self.rows, tensor.shape[0])
            return result

    for weighted in (False, True):
        hidden, weight, targets = problem()
        with Largest() as seen:
            linear_cross_entropy(hidden, weight, targets, 9, weighted).sum().backward()
        assert seen.rows == 9


def test_mistakes_are_named():
    hidden, weight, targets = problem()
    with pytest.raises(TrainingError, match="do not fit"):
        linear_cross_entropy(hidden, weight.T, targets)
    with pytest.raises(TrainingError, match="targets"):
        linear_cross_entropy(hidden, weight, targets[:-1])
    with pytest.raises(TrainingError, match="chunk"):
        linear_cross_entropy(hidden, weight, targets, 0)
