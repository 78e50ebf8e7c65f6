"""Tuning dropout and weight decay: what a validation step may touch, what decays, and that checkpoints are models."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.optimizers import AdamW
from thalweg.methods.optimizers.self_tuning_networks import SelfTuningNetworks
from thalweg.models.parameter_groups import parameter_groups
from thalweg.runs import Run
from thalweg.training.checkpoints import read_state

ARM = "adamw+linear+self_tuning_networks:every=3,warmup=0.0,rate=0.1"


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def prepared(llama, weight_decay=0.1, **options):
    """(model, method, AdamW on its groups), with a response that is large enough to be seen."""
    model, tuning = llama(), SelfTuningNetworks(warmup=0.0, **options)
    optimizer = AdamW(tuning.groups(model, parameter_groups(model, weight_decay)), lr=0.01)
    with torch.no_grad():
        for gate in tuning.response.gates:
            gate.parameters[1].mul_(20.0)
    return model, tuning, optimizer


def one_step(model, tuning, optimizer, batch, step, validating):
    """The loop of the method's docstring; returns the loss."""
    tuning.begin(step, len(batch["input_ids"]), validating)
    model.train(not validating)
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    loss.backward()
    if validating:
        tuning.tune()
    else:
        optimizer.step()
    tuning.end(None if validating else optimizer)
    optimizer.zero_grad()
    return loss.item()


def test_a_validation_step_moves_h_and_leaves_the_response_function(llama, batch_of):
    model, tuning, optimizer = prepared(llama, rate=0.03)
    one_step(model, tuning, optimizer, batch_of(0), 0, False)
    gates, h = tuning.response.gates, tuning.tuned.h.clone()
    # The weights at h = 0, W_el in the source's notation.
    rest = [gate.linear.weight - (gate.parameters[1] @ h)[:, None] * gate.parameters[0] for gate in gates]
    before, others = weights_of(model), [p.detach().clone() for gate in gates for p in gate.parameters]
    memory = json.dumps({k: v.tolist() for k, v in optimizer.state[gates[0].linear.weight].items()})
    one_step(model, tuning, optimizer, batch_of(1), 1, True)
    moved = tuning.tuned.h - h
    assert moved.abs().tolist() == pytest.approx([0.03, 0.03], rel=1e-3)
    for gate, kept in zip(gates, rest, strict=True):
        now = gate.linear.weight - (gate.parameters[1] @ tuning.tuned.h)[:, None] * gate.parameters[0]
        torch.testing.assert_close(now, kept, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(p, old) for p, old in zip((p for g in gates for p in g.parameters), others, strict=True))
    assert json.dumps({k: v.tolist() for k, v in optimizer.state[gates[0].linear.weight].items()}) == memory
    after = weights_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}


def test_tuning_descends_the_validation_loss(llama, batch_of):
    """With the response as it is and nothing trained, h goes where the held-back batch wants it."""
    model, tuning, optimizer = prepared(llama, rate=0.05)
    losses = [one_step(model, tuning, optimizer, batch_of(7), step, True) for step in range(12)]
    assert losses[-1] < losses[0]
    assert all(later < earlier + 1e-4 for earlier, later in itertools.pairwise(losses))
    assert tuning.values == pytest.approx(tuning.tuned.values())
    assert tuning.validations == 12


def test_where_the_scale_is_tuned_validation_is_perturbed(llama, batch_of):
    model, tuning, optimizer = prepared(llama, entropy=0.1)
    before = tuning.tuned.s.clone()
    first = one_step(model, tuning, optimizer, batch_of(7), 0, True)
    assert (tuning.tuned.s - before).abs().min() > 0.01
    plain_model, plain, other = prepared(llama)
    assert one_step(plain_model, plain, other, batch_of(7), 0, True) != first
    assert torch.equal(plain.tuned.s, before)


def test_without_perturbations_the_decay_is_adamws(llama):
    model, tuning, optimizer = prepared(llama, weight_decay=0.3, tune="weight_decay", perturbation=0.001)
    before = weights_of(model)
    tuning.begin(0, 4)
    tuning._noise.zero_()
    tuning.end(optimizer)
    for name, now in weights_of(model).items():
        factor = 1.0 - 0.01 * 0.3 if "_proj" in name else 1.0
        torch.testing.assert_close(now, before[name] * factor)


def test_the_optimizer_keeps_the_decay_of_all_else(llama):
    model = llama(tied=False)
    tuning = SelfTuningNetworks()
    groups = tuning.groups(model, parameter_groups(model, 0.2))
    told = {id(p): group for group in groups for p in group["params"]}
    assert len(told) == sum(len(group["params"]) for group in groups)
    assert told[id(model.lm_head.weight)]["weight_decay"] == 0.2
    gates = tuning.response.gates
    assert {told[id(gate.linear.weight)]["weight_decay"] for gate in gates} == {0.0}
    assert {told[id(p)]["weight_decay"] for gate in gates for p in gate.parameters} == {0.0}
    assert {told[id(gate.parameters[0])]["kind"] for gate in gates} == {"matrix"}
    assert {told[id(gate.parameters[1])]["kind"] for gate in gates} == {"vector"}
    assert tuning.values["weight_decay"] == 0.2
    # Where dropout alone is tuned the optimizer decays as it did.
    model = llama()
    plain = SelfTuningNetworks(tune="dropout").groups(model, parameter_groups(model, 0.2))
    assert plain[0]["weight_decay"] == 0.2
    with pytest.raises(ModelError, match="none of the model's"):
        SelfTuningNetworks().groups(model, parameter_groups(llama(), 0.2))


def test_steps_that_validate():
    tuning = SelfTuningNetworks(every=3, warmup=0.5)
    assert [step for step in range(12) if tuning.due(step, progress=(step + 1) / 12)] == [5, 8, 11]
    assert not any(SelfTuningNetworks(every=0).due(step) for step in range(9))


def test_ranks_share_the_perturbations_of_one_batch(llama):
    _, tuning, _ = prepared(llama)
    tuning.begin(4, 8, seed=2)
    whole = tuning._draws.clone()
    parts = []
    for rank in range(2):
        tuning.begin(4, 4, seed=2, rank=rank, world_size=2)
        parts.append(tuning._draws.clone())
        assert len(tuning._noise) == 8
    assert torch.equal(torch.cat(parts), whole)


def test_tuning_nothing_and_dropping_nothing_is_the_plain_run(trainer_with):
    plain = trainer_with(total_steps=6).steps(4)
    same = trainer_with(total_steps=6, callbacks=[SelfTuningNetworks(every=0, dropout=0.0)]).steps(4)
    other = trainer_with(total_steps=6, callbacks=[SelfTuningNetworks(every=0, dropout=0.3)]).steps(4)
    assert same.loss_history == plain.loss_history
    assert other.loss_history != plain.loss_history
    assert weights_of(same.model).keys() == weights_of(plain.model).keys()


def test_in_a_loop_with_hooks_validation_trains_nothing(trainer_with):
    tuning = SelfTuningNetworks(warmup=0.0, every=3)
    trainer = trainer_with(total_steps=9, callbacks=[tuning]).steps(2)
    before, values = weights_of(trainer.model), dict(tuning.values)
    trainer.steps(1)
    assert tuning.values["dropout"] != values["dropout"]
    after = weights_of(trainer.model)
    still = [name for name in before if "_proj" not in name]
    assert len(still) > 3
    assert all(torch.equal(before[name], after[name]) for name in still)
    trainer.steps(1)
    assert not any(torch.equal(after[name], now) for name, now in weights_of(trainer.model).items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus):
    """Two runs of one recipe: whole, and stopped after step 5 and resumed."""
    import os
    import signal

    from thalweg.recipe import Recipe
    from thalweg.sessions import train as session

    class Stop:
        def step(self, trainer):
            if trainer.clock.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    data = {"corpus": str(corpus), "tokenizer": "bpe:512", "context": 32, "held_out": 0.1}
    settings = {"batch_size": 8, "micro_batch": 4, "peak_lr": 0.005, "weight_decay": 0.1, "checkpoint_every": "4 steps"}
    recipe = Recipe.parse(ARM, budget="10 steps", model="0.2M", data=data, training=settings)
    folder, real, seen = tmp_path_factory.mktemp("stn"), session.assemble, []

    def assemble(*arguments, **options):
        trainer = real(*arguments, **options)
        seen.append(trainer)
        if len(seen) == 2:
            trainer.callbacks.insert(0, Stop())
        return trainer

    session.assemble = assemble
    try:
        whole = session.train(recipe, folder / "whole", quiet=True, show=False)
        stopped = session.train(recipe, folder / "parts", quiet=True, show=False)
        resumed = session.resume(stopped.folder, quiet=True, show=False)
    finally:
        session.assemble = real
    return SimpleNamespace(whole=whole, stopped=stopped, resumed=resumed, trainer=seen[0])


def test_a_resumed_run_is_the_same_bit_for_bit(runs):
    assert runs.stopped.step == 5
    one, two = (load_file(run.checkpoint / "model.safetensors") for run in (runs.whole, runs.resumed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    # h, s, Adam's memory and the response.
    states = [load_file(run.checkpoint / "state.safetensors") for run in (runs.whole, runs.resumed)]
    names = [name for name in states[0] if "self_tuning_networks" in name]
    assert len(names) > 2 * 4 * 7
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)
    lines = [[line["loss"] for line in Run.open(run.folder).metrics("step")] for run in (runs.whole, runs.resumed)]
    assert lines[0] == lines[1]


def test_a_checkpoint_is_an_ordinary_model_that_scores_as_the_response_at_h(runs):
    trainer = runs.trainer
    loaded = AutoModelForCausalLM.from_pretrained(runs.whole.checkpoint)
    assert set(loaded.state_dict()) == set(trainer.model.state_dict())
    part = next(part for part in trainer.callbacks if isinstance(part, SelfTuningNetworks))
    batch = trainer.held_out_batch()
    ids = batch["input_ids"]
    with torch.no_grad():
        part.response.begin(len(ids), torch.zeros(len(ids), 2), None, seed=0, always=True)
        answered = trainer.model.eval()(input_ids=ids, use_cache=False).logits
        part.response.end()
        torch.testing.assert_close(loaded.eval()(input_ids=ids, use_cache=False).logits, answered)
    state = read_state(runs.whole.checkpoint)["parts"]["callback/self_tuning_networks"]
    assert torch.equal(state["h"], part.tuned.h)
    assert torch.equal(state["response"][0], part.response.gates[0].parameters[0])


def test_validation_steps_are_steps_of_the_run(runs):
    lines = list(Run.open(runs.whole.folder).metrics("step"))
    assert len(lines) == 10
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6, 9]
    assert len({line["dropout"] for line in lines}) == 4
    assert len({line["weight_decay"] for line in lines}) == 4
    # The response's products are counted.
    wide = sum(gate.linear.weight.numel() for gate in runs.trainer.callbacks[0].response.gates)
    assert runs.trainer.step_flops > 6.0 * wide * runs.trainer.step_tokens


def test_what_is_validated_on_is_never_trained_on(runs):
    sampler, aside = runs.trainer.data.sampler, runs.trainer.callbacks[0]._reserved.sampler
    trained = {tuple(row) for step in range(60) for row in sampler.batch(step)["input_ids"].tolist()}
    validated = {tuple(row) for step in range(60) for row in aside.batch(step)["input_ids"].tolist()}
    assert validated
    assert not trained & validated


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"every": 1}, "no step"),
        ({"dropout": 0.0}, "cannot be tuned"),
        ({"dropout": 0.9}, "cannot be tuned"),
        ({"perturbation": 0.0}, "not allowed"),
        ({"tune": "momentum"}, "not allowed"),
    ],
)
def test_wrong_options_are_refused(options, word):
    with pytest.raises(RecipeError, match=word):
        SelfTuningNetworks(**options)


def test_what_it_cannot_go_with_is_refused(llama):
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharded = SimpleNamespace(model=model, optimizer=optimizer, parallel=SimpleNamespace(shard=True))
    with pytest.raises(RecipeError, match="sharded"):
        SelfTuningNetworks().setup(sharded)
    optimizer.second_look = True
    with pytest.raises(RecipeError, match="held back"):
        SelfTuningNetworks().setup(SimpleNamespace(model=model, optimizer=optimizer))
