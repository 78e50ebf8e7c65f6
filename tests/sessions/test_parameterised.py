"""Methods that prepare the model and the groups before the optimizer is built: the hooks, and muP through them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from thalweg.errors import ModelError, RecipeError
from thalweg.models.ladder import build, nearest
from thalweg.models.surgery import installed
from thalweg.runs import Run
from thalweg.sessions.train import make_plan, train

ARM = "adamw+mup:base_width=32"


def recorded(folder):
    """Groups of the optimizer in a run's last checkpoint."""
    state = json.loads((folder / "checkpoints" / "latest" / "state.json").read_text(encoding="utf-8"))
    return state["optimizer"]["param_groups"]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    from thalweg.recipe import Recipe

    data = {"corpus": str(corpus), "tokenizer": "bpe:512", "context": 32, "held_out": 0.1}
    settings = {"batch_size": 8, "peak_lr": 0.01, "weight_decay": 0.1}
    recipe = Recipe.parse(ARM, budget="6 steps", model="0.2M", data=data, training=settings)
    return train(recipe, tmp_path_factory.mktemp("mup") / "run", quiet=True, show=False)


def test_a_run_trains_with_the_groups_of_mup(run):
    groups = recorded(run.folder)
    assert {(group["kind"], group["lr_scale"]) for group in groups} == {
        ("matrix", 0.5), ("embedding", 1.0), ("vector", 1.0), ("vector", 0.5)
    }  # fmt: skip
    assert {group["eps"] for group in groups} == {5e-9, 1e-8}
    assert {group["weight_decay"] for group in groups} == {0.2, 0.0}
    losses = [line["loss"] for line in Run.open(run.folder).metrics("step")]
    assert losses[-1] < losses[0] - 0.3
    # The final gain began at half and has been trained since: nothing scaled it back.
    gain = load_file(run.checkpoint / "model.safetensors")["model.norm.weight"]
    assert gain.mean().item() == pytest.approx(0.5, abs=0.05)
    assert AutoModelForCausalLM.from_pretrained(run.checkpoint).config.model_type == "llama"


def test_a_resumed_run_is_the_same_bit_for_bit(run, tmp_path, monkeypatch):
    import os
    import signal

    from thalweg.sessions import train as session

    real = session.assemble

    class Stop:
        def step(self, trainer):
            if trainer.clock.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    def assemble(*arguments, **options):
        trainer = real(*arguments, **options)
        trainer.callbacks.insert(0, Stop())
        return trainer

    monkeypatch.setattr(session, "assemble", assemble)
    stopped = train(Run.open(run.folder).recipe, tmp_path / "parts", quiet=True, show=False)
    assert stopped.step == 3
    monkeypatch.undo()
    again = session.resume(stopped.folder, quiet=True, show=False)
    one, two = (load_file(each.checkpoint / "model.safetensors") for each in (run, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert recorded(again.folder) == recorded(run.folder)


def test_divided_weights_get_the_same_groups(small, run, tmp_path):
    recipe = small(ARM, budget="6 steps", training__peak_lr=0.01, training__shard=True)
    sharded = train(recipe, tmp_path / "sharded", quiet=True, show=False)
    one, two = ([line["loss"] for line in Run.open(each.folder).metrics("step")] for each in (run, sharded))
    assert two == pytest.approx(one, rel=1e-5)


def test_the_plan_takes_the_rate_of_the_base(small):
    chosen, reasons = {}, {}
    for arm in ("adamw", "adamw+mup", "adamw+mup:base_width=256"):
        plan, _ = make_plan(small(arm, training__peak_lr=None), quiet=True)
        chosen[arm], reasons[arm] = plan["chosen"]["peak_lr"], plan["reasons"]["peak_lr"]
    # Width 64; AdamW's own rate is 0.007 at width 128.
    assert list(chosen.values()) == [0.014, 0.007, 0.0035]
    assert "mup" not in reasons["adamw"]
    assert "width 256, from which mup carries it" in reasons["adamw+mup:base_width=256"]


def test_the_rule_must_fit_the_optimizer(small, tmp_path):
    with pytest.raises(RecipeError, match=r"width\^-0.5") as raised:
        train(small("muon+mup"), tmp_path / "wrong", quiet=True, show=False)
    assert "mup:rule=muon" in raised.value.fix
    train(small("muon+mup:rule=muon,base_width=16", budget="2 steps"), tmp_path / "right", quiet=True, show=False)
    assert {g["lr_scale"] for g in recorded(tmp_path / "right") if g["kind"] == "matrix"} == {0.5}


def test_a_trained_model_is_refused(small, run, tmp_path):
    with pytest.raises(ModelError, match="fresh"):
        train(small(ARM, model=str(run.checkpoint)), tmp_path / "again", quiet=True, show=False)


class Surgery:
    """Puts another model in the place of the one it is given."""

    def __init__(self, calls):
        self.calls = calls

    def install(self, model):
        self.calls.append("surgery")
        return build(nearest("0.35M"), 64, 16, seed=1)


class Rates:
    def __init__(self, calls):
        self.calls = calls

    def install(self, model):
        self.calls.append(f"rates for width {model.config.hidden_size}")
        return model

    def groups(self, model, groups):
        return groups


def test_rates_go_by_the_model_that_surgery_leaves():
    calls: list[str] = []
    model = installed([Rates(calls), object(), Surgery(calls)], build(nearest("0.2M"), 64, 16, seed=0))
    assert calls == ["surgery", "rates for width 96"]
    assert model.config.hidden_size == 96
