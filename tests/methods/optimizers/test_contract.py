"""The contract that every optimizer of the catalogue keeps: torch's, in full."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg import catalog
from thalweg.errors import UserError
from thalweg.models.parameter_groups import parameter_groups

OPTIMIZERS = [name for name, card in catalog.load().items() if card.slot == "optimizer"]
pytestmark = pytest.mark.parametrize("name", OPTIMIZERS)


def build(name, params, lr=0.01, weight_decay=0.0):
    return catalog.resolve(name)(params, lr=lr, weight_decay=weight_decay)


def small_model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 6, generator=generator)
    return F.mse_loss(model(inputs), inputs[:, :3].square())


def train(model, optimizer, steps, start=0):
    """Some steps; an optimizer that takes a second look is given the closure for it, as by the trainer."""
    for step in range(start, start + steps):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        closure()
        optimizer.step(*([closure] if getattr(optimizer, "second_look", False) else []))


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def same(one, two):
    """Equal nested state, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return one == two


def test_is_a_torch_optimizer_with_the_plans_arguments(name):
    optimizer = build(name, small_model().parameters(), lr=0.123, weight_decay=0.045)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.123
    assert optimizer.param_groups[0]["weight_decay"] == 0.045


def test_state_round_trip_mid_run_is_bit_exact(name):
    model = small_model()
    optimizer = build(name, model.parameters(), weight_decay=0.1)
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    resumed = build(name, other.parameters(), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(optimizer.state_dict(), resumed.state_dict())
    train(model, optimizer, 4, start=3)
    train(other, resumed, 4, start=3)
    assert equal(model, other)
    assert same(optimizer.state_dict(), resumed.state_dict())


def test_same_start_same_end(name):
    models = [small_model(), small_model()]
    for model in models:
        train(model, build(name, model.parameters()), 5)
    assert equal(*models)


def test_generators_groups_and_named_parameters_give_the_same_walk(name):
    models = [small_model() for _ in range(4)]
    optimizers = [
        build(name, models[0].parameters()),
        build(name, list(models[1].parameters())),
        build(name, [{"params": models[2].parameters()}]),
        build(name, models[3].named_parameters()),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
    assert all(equal(models[0], model) for model in models[1:])


def test_added_group_moves_with_its_own_rate(name):
    model, extra, still = small_model(), torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(4, 3))
    optimizer = build(name, model.parameters())
    optimizer.add_param_group({"params": [extra], "lr": 0.1})
    optimizer.add_param_group({"params": [still], "lr": 0.0})
    for parameter in (extra, still):
        parameter.grad = torch.full_like(parameter, 0.5) * torch.arange(3)
    optimizer.step()
    assert len(optimizer.param_groups) == 3
    assert not torch.equal(extra, torch.ones(4, 3))
    assert torch.equal(still, torch.ones(4, 3))


def test_closure_runs_with_gradients_and_its_loss_comes_back(name):
    model = small_model()
    optimizer = build(name, model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    before = loss_of(model, 0).item()
    assert optimizer.step(closure).item() == pytest.approx(before)
    assert loss_of(model, 0).item() < before


def test_zero_grad_and_step_hooks(name):
    model = small_model()
    optimizer = build(name, model.parameters())
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(model, optimizer, 2)
    optimizer.zero_grad()
    assert calls == [1, 1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_and_unused_parameters_stay(name):
    model = small_model()
    model[0].weight.requires_grad_(False)
    unused = torch.nn.Parameter(torch.ones(3, 3))
    frozen = model[0].weight.clone()
    optimizer = build(name, [*model.parameters(), unused], weight_decay=0.1)
    train(model, optimizer, 2)
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(unused, torch.ones(3, 3))


def test_zero_gradients_change_nothing(name):
    model = small_model()
    before = copy.deepcopy(model)
    optimizer = build(name, model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.step()
    assert equal(model, before)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 5), (5, 1), (2, 3, 4), (3, 2, 2, 2), (0,), (0, 3)])
def test_odd_shapes(name, shape):
    parameter = torch.nn.Parameter(torch.ones(shape))
    optimizer = build(name, [parameter])
    for _ in range(3):
        parameter.grad = torch.full(shape, 0.3)
        optimizer.step()
    assert parameter.isfinite().all()
    assert (parameter < 1.0).all()


def test_layout_in_memory_does_not_matter(name):
    torch.manual_seed(0)
    straight = torch.nn.Parameter(torch.randn(5, 7))
    turned = torch.nn.Parameter(straight.detach().t().contiguous().t())
    assert not turned.is_contiguous()
    optimizers = [build(name, [straight]), build(name, [turned])]
    for step in range(3):
        gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
        straight.grad, turned.grad = gradient.clone(), gradient.t().contiguous().t()
        for optimizer in optimizers:
            optimizer.step()
    # Two kernels may round differently in bfloat16; the walk is 3 steps of 0.01.
    assert torch.allclose(straight, turned, atol=1e-4)


def test_tied_weights_move_once(name):
    tied, single = small_model(), small_model()
    tied.add_module("again", tied[2])
    assert len(list(tied.parameters())) == 4
    optimizers = [build(name, tied.parameters()), build(name, single.parameters())]
    for model, optimizer in zip((tied, single), optimizers, strict=True):
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (index + 1))
        optimizer.step()
    assert equal(tied, single)


def test_sparse_gradients_are_refused_with_a_reason(name):
    table = torch.nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    optimizer = build(name, table.parameters())
    with pytest.raises((UserError, RuntimeError), match="sparse"):
        optimizer.step()


def test_descends_a_badly_scaled_quadratic(name):
    torch.manual_seed(0)
    target, scales = torch.randn(8, 6), torch.logspace(-1, 1, 6)
    parameter, bias = torch.nn.Parameter(torch.zeros(8, 6)), torch.nn.Parameter(torch.zeros(6))
    optimizer = build(name, [parameter, bias], lr=0.2)
    scheduler = catalog.resolve("linear")(warmup=0.0).scheduler(optimizer, 300)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (scales * (parameter - target)).square().mean() + (bias - 1.0).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        scheduler.step()
    assert losses[-1] < 0.01 * losses[0]


def test_learning_rate_is_read_at_every_step(name):
    model = small_model()
    optimizer = build(name, model.parameters())
    train(model, optimizer, 1)
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 2)
    assert equal(model, before)


def test_low_precision_parameters(name):
    model = small_model().to(torch.bfloat16)
    optimizer = build(name, model.parameters(), lr=0.05)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(parameter.dtype == torch.bfloat16 and parameter.isfinite().all() for parameter in model.parameters())


def test_step_never_waits_for_the_device(name):
    class NoItem(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func), "a tensor was read by the host"
            return func(*args, **(kwargs or {}))

    model = small_model()
    optimizer = build(name, model.parameters(), weight_decay=0.1)
    train(model, optimizer, 1)
    loss_of(model, 1).backward()
    with NoItem():
        optimizer.step()


def test_trains_a_language_model_through_our_groups(name, llama, batch_of):
    model = llama(tied=False)
    # At the card's rate, carried to this width: what a rate means differs from method to method (a share of a layer's
    # norm for LARS and LAMB).
    said = catalog.lookup(name).defaults
    lr = said["peak_lr"] * (said["at_width"] / model.config.hidden_size) ** said["width_exponent"]
    optimizer = build(name, parameter_groups(model, weight_decay=0.1), lr=lr)
    losses = []
    for step in range(60):
        batch = batch_of(step)
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert sum(losses[-3:]) / 3 < losses[0] - 0.3


def test_in_a_hugging_face_trainer(name, llama, batch_of, tmp_path):
    import transformers

    model = llama()
    start = copy.deepcopy(model)
    rows = [{"input_ids": row, "labels": row} for step in range(5) for row in batch_of(step, rows=4)["input_ids"]]
    optimizer = build(name, parameter_groups(model), lr=1e-2)
    scheduler = catalog.resolve("wsd")().scheduler(optimizer, 5)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, scheduler))
    result = trainer.train()
    assert result.global_step == 5
    assert result.training_loss < 4.5
    assert not equal(model, start)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_many_small_steps_are_not_lost_in_bfloat16(name):
    """Steps of a thousandth of a weight near 1, which bfloat16 alone would round away."""
    wide = torch.nn.Parameter(torch.ones(6, 4))
    narrow = torch.nn.Parameter(torch.ones(6, 4, dtype=torch.bfloat16))
    optimizers = [build(name, [parameter], lr=1e-3) for parameter in (wide, narrow)]
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    for _ in range(40):
        wide.grad, narrow.grad = gradient.float(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.equal(wide.detach().bfloat16(), torch.ones(6, 4, dtype=torch.bfloat16))
    assert torch.equal(narrow.detach(), wide.detach().bfloat16())


def test_narrow_state_round_trips_and_outside_changes_count(name):
    model = small_model().bfloat16()
    optimizer = build(name, model.parameters(), lr=1e-3)

    def steps(one, walker, count):
        for step in range(count):
            generator = torch.Generator().manual_seed(step)
            for parameter in one.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16()
            walker.step()

    steps(model, optimizer, 2)
    other = copy.deepcopy(model)
    resumed = build(name, other.parameters(), lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(optimizer.state_dict(), resumed.state_dict())
    steps(model, optimizer, 3)
    steps(other, resumed, 3)
    assert equal(model, other)
    with torch.no_grad():
        model[0].bias[0] = 7.0
    optimizer.param_groups[0]["lr"] = 0.0
    steps(model, optimizer, 1)
    assert model[0].bias[0] == 7.0
    assert torch.equal(model[0].bias[1:], other[0].bias[1:])
