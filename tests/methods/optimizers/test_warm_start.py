"""Shrink and perturb: its arithmetic, what it keeps of the function, and when the callback acts."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.optimizers import WarmStart
from thalweg.methods.optimizers.warm_start import fresh_like, shrink_and_perturb


def linear(values):
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values))
    return layer


def networks():
    """A trained-looking network with batch normalisation, and a fresh one."""
    built = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        built.append(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)))
    with torch.no_grad():
        built[0][1].weight.copy_(torch.linspace(0.5, 2.0, 5))
        built[0][1].running_mean.fill_(7.0)
    return built


def test_worked_example():
    model, fresh = linear([[2.0, -1.0], [0.5, 3.0]]), linear([[0.3, 0.1], [-0.2, 0.4]])
    shrink_and_perturb(model, fresh, 0.4, 0.1)
    assert torch.allclose(model.weight, torch.tensor([[0.83, -0.39], [0.18, 1.24]]), atol=1e-7)
    assert torch.equal(fresh.weight, torch.tensor([[0.3, 0.1], [-0.2, 0.4]]))


@pytest.mark.parametrize("gains_to_one", [True, False])
def test_the_two_ends_are_the_two_models_bit_for_bit(gains_to_one):
    trained, fresh = networks()
    for (shrink, perturb), expected in (((1.0, 0.0), trained), ((0.0, 1.0), fresh)):
        model = copy.deepcopy(trained)
        shrink_and_perturb(model, fresh, shrink, perturb, gains_to_one)
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(model[1].running_mean, fresh[1].running_mean)


def test_authors_rule_treats_gains_like_all_else():
    """Against their rule, written out: every parameter of the new network is shrink old + perturb new."""
    trained, fresh = networks()
    expected = [0.4 * old + 0.1 * new for old, new in zip(trained.parameters(), fresh.parameters(), strict=True)]
    shrink_and_perturb(trained, fresh, gains_to_one=False)
    for one, other in zip(trained.parameters(), expected, strict=True):
        assert torch.equal(one, other)


def test_gains_go_towards_one():
    trained, fresh = networks()
    shrink_and_perturb(trained, fresh)
    assert torch.allclose(trained[1].weight, 1.0 + 0.4 * (torch.linspace(0.5, 2.0, 5) - 1.0))


def test_shrinking_keeps_the_decision_and_makes_the_loss_large_again():
    model = nn.Sequential(linear([[1.0, -1.0], [2.0, 1.0]]), nn.ReLU(), linear([[1.0, 0.5], [-1.0, 1.0]]))
    inputs = torch.tensor([[1.0, 2.0]])
    before = model(inputs)
    assert torch.equal(before, torch.tensor([[2.0, 4.0]]))
    shrink_and_perturb(model, copy.deepcopy(model), 0.4, 0.0)
    after = model(inputs)
    assert torch.allclose(after, torch.tensor([[0.32, 0.64]]))  # 0.4 to the power of two layers
    assert torch.allclose(before.softmax(-1), torch.tensor([[0.1192, 0.8808]]), atol=1e-4)
    assert torch.allclose(after.softmax(-1), torch.tensor([[0.4207, 0.5793]]), atol=1e-4)


def test_size_of_the_result():
    """The cross term averages out over many weights."""
    torch.manual_seed(0)
    model, fresh = nn.Linear(400, 400, bias=False), nn.Linear(400, 400, bias=False)
    expected = 0.16 * model.weight.square().sum() + 0.01 * fresh.weight.square().sum()
    shrink_and_perturb(model, fresh)
    assert model.weight.square().sum().item() == pytest.approx(expected.item(), rel=5e-3)


def test_narrow_weights_are_mixed_in_float32():
    torch.manual_seed(0)
    model, fresh = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8)
    expected = (0.4 * model.weight.float() + 0.1 * fresh.weight).bfloat16()
    shrink_and_perturb(model, fresh)
    assert torch.equal(model.weight, expected)


def test_fresh_models_are_reproducible_and_leave_the_random_state(llama):
    model = llama(seed=3)
    state = torch.get_rng_state()
    one, two, other = fresh_like(model, 5), fresh_like(model, 5), fresh_like(model, 6)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    # The ladder's initialisation: 1 / sqrt(fan in), not transformers' 0.02.
    assert one.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.25, rel=0.1)


def test_models_of_other_families_are_drawn_as_transformers_draws_them():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=32, n_layer=1, n_head=2, n_positions=16))
    fresh = fresh_like(model, 0)
    assert fresh.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
    shrink_and_perturb(model, fresh)


def test_callback_acts_before_the_first_step_only(trainer_with, llama):
    start = llama(seed=0)
    trainer = trainer_with(callbacks=[WarmStart(shrink=0.5, perturb=0.0)])
    assert torch.equal(trainer.model.lm_head.weight, 0.5 * start.lm_head.weight)
    trainer.steps(2)
    before = trainer.model.lm_head.weight.clone()
    trainer.call("setup")
    assert torch.equal(trainer.model.lm_head.weight, before)


def test_callback_makes_the_optimizer_forget(trainer_with):
    trainer = trainer_with().steps(2)
    assert len(trainer.optimizer.state) > 0
    trainer.clock.step = 0  # a run that extends another begins at step 0 with the other's moments
    WarmStart().setup(trainer)
    assert len(trainer.optimizer.state) == 0


def test_a_run_that_extends_another(small, tmp_path):
    """Its first loss is that of shrunk weights, and the old run is as it was."""
    import json

    from thalweg.sessions.extend import ancestor, continued_recipe
    from thalweg.sessions.train import train

    first = train(small("adamw+linear", budget="12 steps"), tmp_path / "first", quiet=True, show=False)
    recipe = continued_recipe(ancestor(first.folder), "+4 steps", schedule="linear")

    def opening(arm, name):
        changed = recipe if not arm else recipe.model_copy(update={"callbacks": small(arm).callbacks})
        train(changed, tmp_path / name, quiet=True, show=False)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return next(line["loss"] for line in map(json.loads, lines) if line["event"] == "step")

    as_it_is, kept = opening("", "plain"), opening("warm_start:shrink=1.0,perturb=0.0", "kept")
    shrunk = opening("warm_start", "shrunk")
    assert kept == as_it_is
    assert shrunk > as_it_is + 0.2


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="shrink"):
        WarmStart(shrink=-0.1)
    with pytest.raises(RecipeError, match="perturb"):
        WarmStart(perturb=float("inf"))
    with pytest.raises(ModelError, match="other parameters"):
        shrink_and_perturb(nn.Linear(2, 3), nn.Linear(2, 4))


def without_buffers(model):
    return nn.Sequential(model[0], nn.ReLU(), model[3])


def sharded(rank, folder):
    """One rank of two: a model under FSDP2 is shrunk and perturbed; rank 0 writes what comes out."""
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, fresh = map(without_buffers, networks())
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    shrink_and_perturb(model, fresh)
    full = {name: parameter.detach().full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        save_file(full, f"{folder}/result.safetensors")
    # Nobody leaves while another rank may still be talking to it.
    dist.barrier()
    dist.destroy_process_group()


def test_two_sharded_ranks_equal_one(two_ranks, tmp_path):
    model, fresh = map(without_buffers, networks())
    shrink_and_perturb(model, fresh)
    result = two_ranks(__file__, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(result[name], parameter)


if __name__ == "__main__":
    sharded(int(sys.argv[1]), sys.argv[2])
