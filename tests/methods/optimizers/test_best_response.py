"""The response of linear layers against the formula of the source, written out, and its folding into the weights."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from thalweg.errors import ModelError
from thalweg.methods.optimizers.best_response import BestResponse, Gate


def gate_of(inputs=5, outputs=4, count=2, bias=True):
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias).double()
    gate = Gate(linear, count, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _, _, rows in gate.parts():
            rows.mul_(50.0)
    return gate


def whole(gate, x, offsets):
    return gate.linear(x) + gate.response(x, offsets)


def around(model, count=2, size=50.0):
    response = BestResponse(model, count, seed=3)
    with torch.no_grad():
        for gate in response.gates:
            for _, _, rows in gate.parts():
                rows.mul_(size)
    return response


def test_worked_example():
    gate = gate_of(2, 1, 1)
    values = {"weight": [[0.5, 0.5]], "rows": [[0.2]], "bias": [1.0], "bias_rows": [[0.3]]}
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[1.0, 0.0]]))
        gate.linear.bias.copy_(torch.tensor([0.1]))
        for parameter, value in zip(gate.parameters, values.values(), strict=True):
            parameter.copy_(torch.tensor(value))
    x = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    assert whole(gate, x, torch.tensor([[2.0]]).double()).item() == pytest.approx(2.3)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_sources_layer(bias):
    """The paper's form, W_el and V h, with W = W_el + diag(V h) Y."""
    gate, h = gate_of(bias=bias), torch.tensor([-2.9, 0.7]).double()
    x, offsets = torch.randn(3, 6, 5).double(), torch.randn(3, 2).double()
    (own, response, rows), *rest = gate.parts()
    gated = (offsets + h) @ rows.T
    wanted = functional.linear(x, own - (rows @ h)[:, None] * response)
    wanted = wanted + gated[:, None] * functional.linear(x, response)
    for constant, extra, gates in rest:
        wanted = wanted + (constant - (gates @ h) * extra) + (((offsets + h) @ gates.T) * extra)[:, None]
    torch.testing.assert_close(whole(gate, x, offsets), wanted)


def test_the_gate_is_linear_in_h():
    gate, x = gate_of(), torch.randn(1, 6, 5).double()
    one, two = torch.randn(2, 1, 2).double()
    none = torch.zeros(1, 2).double()
    sums = whole(gate, x, one + two) - whole(gate, x, one) - whole(gate, x, two) + whole(gate, x, none)
    torch.testing.assert_close(sums, torch.zeros_like(sums))


def test_without_gates_it_is_the_plain_layer_and_h_has_no_slope():
    gate, x = gate_of(), torch.randn(2, 6, 5).double()
    with torch.no_grad():
        for _, _, rows in gate.parts():
            rows.zero_()
    offsets = torch.randn(2, 2).double().requires_grad_()
    made = whole(gate, x, offsets)
    assert torch.equal(made, gate.linear(x))
    made.square().sum().backward()
    assert torch.equal(offsets.grad, torch.zeros_like(offsets))


@pytest.mark.parametrize("bias", [True, False])
def test_moving_takes_the_weights_along(bias):
    gate, x, change = gate_of(bias=bias), torch.randn(3, 6, 5).double(), torch.tensor([0.3, -1.1]).double()
    offsets = torch.randn(3, 2).double()
    before = whole(gate, x, offsets)
    gate.move(change)
    torch.testing.assert_close(whole(gate, x, offsets - change), before)


def test_penalty_is_the_mean_square_of_the_examples_weights():
    gate, offsets = gate_of(), torch.randn(7, 2).double()
    own, response, rows = gate.parts()[0]
    each = [0.5 * (own + (rows @ offset)[:, None] * response).square().sum() for offset in offsets]
    torch.testing.assert_close(gate.penalty(offsets), sum(each) / 7)


def test_a_trained_response_has_value_and_slope_of_the_best_one():
    """Ridge, one feature: a w^2 / 2 - c w + lambda w^2 / 2 is least at w = c / (a + lambda), lambda = softplus(h)."""
    a, c, h, sigma = 1.7, 0.9, -0.4, 0.1
    gate, x = gate_of(1, 1, 1, bias=False), torch.ones(1, 1, 1).double()
    learnt = [gate.linear.weight, *gate.parameters]
    optimizer = torch.optim.LBFGS(
        learnt, max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = 0.0
        for offset in (-sigma, sigma):
            offsets = torch.tensor([[offset]]).double()
            w = whole(gate, x, offsets).squeeze()
            loss = loss + 0.5 * a * w**2 - c * w + math.log1p(math.exp(h + offset)) * gate.penalty(offsets)
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    decay, slope = math.log1p(math.exp(h)), 1.0 / (1.0 + math.exp(-h))
    assert gate.linear.weight.item() == pytest.approx(c / (a + decay), rel=2e-3)
    learnt_slope = (gate.parameters[1] * gate.parameters[0]).item()
    assert learnt_slope == pytest.approx(-c / (a + decay) ** 2 * slope, rel=5e-3)


def test_a_model_answers_with_each_examples_own_weights(llama, batch_of):
    model, ids = llama(), batch_of(0, rows=3)["input_ids"]
    response, offsets = around(model), torch.randn(3, 2)
    response.begin(3, offsets, None, seed=0)
    together = model(input_ids=ids).logits
    response.end()
    plain = model(input_ids=ids).logits
    assert (together - plain).abs().max() > 0.01
    for row, offset in enumerate(offsets):
        response.move(offset)
        torch.testing.assert_close(model(input_ids=ids[row : row + 1]).logits[0], together[row], atol=1e-5, rtol=1e-4)
        response.move(-offset)
    torch.testing.assert_close(model(input_ids=ids).logits, plain, atol=1e-5, rtol=1e-4)


def test_the_hypergradient_is_that_of_moved_weights(llama, batch_of):
    model, batch = llama().double(), batch_of(0, rows=4)
    response = around(model)

    def loss():
        logits = model(input_ids=batch["input_ids"]).logits
        return functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    leaf = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    response.begin(4, leaf, None, seed=0)
    loss().backward()
    response.end()
    for place in range(2):
        # Llama's norms compute in float32, so the difference cannot be small.
        change = torch.zeros(2, dtype=torch.float64)
        change[place] = 1e-2
        values = []
        for sign in (1.0, -1.0):
            response.move(sign * change)
            values.append(loss().item())
            response.move(-sign * change)
        assert leaf.grad.sum(0)[place].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=5e-3)


def test_micro_batches_are_the_batch_and_a_second_look_sees_the_same(llama, batch_of):
    model, ids = llama(), batch_of(0, rows=4)["input_ids"]
    response, rates = around(model), torch.tensor([0.1, 0.2, 0.3, 0.4])
    response.begin(4, torch.randn(4, 2), rates, seed=5)
    first, again = ([model(input_ids=part).logits for part in ids.split(2)] for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    response.begin(4, None, rates, seed=6)
    assert not torch.equal(model(input_ids=ids[:2]).logits, first[0])
    # Without dropout parts and whole agree.
    offsets = torch.randn(4, 2)
    response.begin(4, offsets, None, seed=5)
    parts = torch.cat([model(input_ids=part).logits for part in ids.split(2)])
    torch.testing.assert_close(parts, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_evaluation_sees_the_plain_model(llama, batch_of):
    model, ids = llama(), batch_of(0, rows=2)["input_ids"]
    plain = model.eval()(input_ids=ids).logits
    response = around(model)
    response.begin(2, torch.randn(2, 2), torch.full((2,), 0.5), seed=0)
    assert torch.equal(model(input_ids=ids).logits, plain)
    response.begin(2, torch.randn(2, 2), None, seed=0, always=True)
    assert not torch.equal(model(input_ids=ids).logits, plain)
    response.end()
    assert torch.equal(model.train()(input_ids=ids).logits, plain)


def test_each_example_is_dropped_at_its_own_rate(llama):
    model = llama()
    response = BestResponse(model, 0, seed=0)
    assert response.gates == []
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output))
    ids = torch.full((3, 4000), 5)
    response.begin(3, None, torch.tensor([0.0, 0.2, 0.7]), seed=0)
    with torch.no_grad():
        model.get_input_embeddings()(ids)
    row = model.get_input_embeddings().weight[5]
    assert [(kept == 0).double().mean().item() for kept in seen[0]] == pytest.approx([0.0, 0.2, 0.7], abs=0.01)
    # What is kept is scaled so that the mean stays.
    torch.testing.assert_close(seen[0][2].amax(0).maximum(-seen[0][2].amin(0)), row.abs() / 0.3)
    assert torch.equal(seen[0][0], row.expand(4000, -1))


def test_names_and_parameters_of_the_model_stay(llama):
    model = llama()
    names = list(model.state_dict())
    BestResponse(model, 2, seed=0)
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in llama().named_parameters()]


def test_biases_answer_too(batch_of):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = hf.Qwen2ForCausalLM(hf.Qwen2Config(vocab_size=37, num_key_value_heads=1, **shape))
    response = around(model)
    assert sorted({len(gate.parameters) for gate in response.gates}) == [2, 4]
    ids, offset = batch_of(0, rows=2)["input_ids"], torch.tensor([0.5, -0.5])
    response.begin(2, offset.expand(2, -1), None, seed=0)
    answered = model(input_ids=ids).logits
    response.end()
    response.move(offset)
    torch.testing.assert_close(model(input_ids=ids).logits, answered, atol=1e-5, rtol=1e-4)


def test_models_of_another_shape_are_refused():
    model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=37, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    with pytest.raises(ModelError, match="not of Llama's shape"):
        BestResponse(model, 2, seed=0)


def test_layers_that_mix_examples_are_refused():
    with pytest.raises(ModelError, match="no example can be told"):
        gate_of().response(torch.randn(12, 5).double(), torch.zeros(3, 2).double())
