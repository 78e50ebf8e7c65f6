"""The signs against hand-computed numbers, and when a warning is given."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.monitors import Instability
from thalweg.methods.monitors.instability import attention_logits, forecast_crossing, measure


def test_attention_logits_are_those_of_the_model(llama, batch_of):
    """Against the probabilities of eager attention: differences of log-probabilities are differences of logits."""
    model = llama().eval()
    model.set_attn_implementation("eager")
    batch = batch_of(0)
    attention = model.model.layers[0].self_attn
    hidden = model.model.layers[0].input_layernorm(model.get_input_embeddings()(batch["input_ids"]))
    positions = torch.arange(hidden.shape[1])[None]
    embeddings = model.model.rotary_emb(hidden, positions)
    with torch.no_grad():
        largest = attention_logits(attention, hidden, embeddings)
        shape = (*hidden.shape[:2], -1, attention.head_dim)
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

        query, key = (p(hidden).view(shape).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
        query, key = apply_rotary_pos_emb(query, key, *embeddings)
        key = repeat_kv(key, 2)
        by_hand = max(
            abs(float(query[b, h, i] @ key[b, h, j])) / attention.head_dim**0.5
            for b in range(hidden.shape[0])
            for h in range(query.shape[1])
            for i in range(hidden.shape[1])
            for j in range(i + 1)
        )
    assert float(largest) == pytest.approx(by_hand, rel=1e-5)


def test_scaling_queries_scales_the_logits(llama, batch_of):
    model = llama()
    before = measure(model, batch_of(0))["attention_logit"]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(10.0)
    # The largest of the first layer grows tenfold; later layers see other inputs, so it is a bound.
    assert measure(model, batch_of(0))["attention_logit"] > 5 * before


def test_log_z_of_uniform_logits(llama, batch_of):
    model = llama(tied=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert measure(model, batch_of(0))["output_log_z"] == pytest.approx(math.log(37), abs=1e-5)


def test_forecast_on_straight_lines():
    steps = [10, 20, 30, 40]
    assert forecast_crossing(steps, [1.0, 10.0, 100.0, 1000.0], 1e4) == pytest.approx(50.0)
    assert forecast_crossing(steps, [1e-3, 1e-4, 1e-5, 1e-6], 1e-7) == pytest.approx(50.0)
    assert forecast_crossing(steps, [1.0, 10.0, 100.0, 2e4], 1e4) == 40.0
    assert forecast_crossing(steps, [4.0, 3.0, 2.0, 1.0], 1e4) is None
    assert forecast_crossing(steps[:3], [1.0, 10.0, 100.0], 1e4) is None
    assert forecast_crossing(steps, [1.0, 0.0, 2.0, 3.0], 1e4) is None
    assert forecast_crossing([], [], 1e4) is None
    # Twice the 30 steps that the line looks back on, and a little more than that.
    assert forecast_crossing(steps, [1.0, 10.0, 100.0, 1000.0], 10.0**8.99) == pytest.approx(99.9)
    assert forecast_crossing(steps, [1.0, 10.0, 100.0, 1000.0], 10.0**9.01) is None


def after(monitor: Instability, values: list[float], monkeypatch, final: int = 100):  # type: ignore[no-untyped-def]
    """The warnings, by step, of a monitor that measures these attention logits, every 10 steps of `final`."""
    found = {}
    for index, value in enumerate(values, start=1):
        module = "thalweg.methods.monitors.instability.measure"
        monkeypatch.setattr(module, lambda model, batch, value=value: {"attention_logit": value})
        clock = SimpleNamespace(step=10 * index, progress=10 * index / final)
        trainer = SimpleNamespace(clock=clock, metrics={}, model=None, held_out_batch=lambda: None)
        monitor.step(trainer)
        if "warning" in trainer.metrics:
            found[clock.step] = trainer.metrics["warning"]
    return found


def test_a_warning_comes_before_the_threshold_and_once(monkeypatch):
    values = [10.0 * 2**index for index in range(9)]
    warned = after(Instability(every=10), values, monkeypatch)
    # Doubling every 10 steps from 80 at step 40, 1e4 comes near step 110: beyond the run's 100 steps.
    assert warned == {}
    # At step 40 a line over 30 steps is believed for 60 more; at step 50 one over 40 steps for 80.
    warned = after(Instability(every=10), values, monkeypatch, final=200)
    assert list(warned) == [50]
    assert "will pass, at step 110" in warned[50]


def test_what_has_passed_is_said_so(monkeypatch):
    warned = after(Instability(every=10), [1.0, 2e4, 3e4], monkeypatch)
    assert list(warned) == [20]
    assert "has passed 10000" in warned[20]


def test_state_goes_on(monkeypatch):
    values = [10.0 * 2**index for index in range(6)]
    whole = Instability(every=10)
    after(whole, values, monkeypatch, final=200)
    first, second = Instability(every=10), Instability(every=10)
    after(first, values[:3], monkeypatch, final=200)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert whole.state_dict()["warned"] == {"attention_logit": 50}


def test_gradient_size_is_noted(trainer_with):
    trainer = trainer_with(callbacks=[Instability(every=2)]).steps(2)
    assert trainer.metrics["gradient_rms"] > 0


def test_every_below_one():
    with pytest.raises(RecipeError):
        Instability(every=0)
