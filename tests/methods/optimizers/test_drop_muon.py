"""Drop-Muon: the draw, what stays as it is, what backpropagation no longer does, and ranks against one process."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.errors import ModelError, RecipeError
from thalweg.methods.optimizers import DropMuon, Muon
from thalweg.methods.optimizers.drop_muon import chain_of, chances_of
from thalweg.models.parameter_groups import parameter_groups


def loss_of(model, batch):
    return model(input_ids=batch["input_ids"], labels=batch["targets"], use_cache=False).loss


def followed(model, seed=0, **options):
    optimizer = DropMuon(parameter_groups(model, weight_decay=0.1), lr=0.01, **options)
    optimizer.follow(model, seed)
    return optimizer


def train(model, optimizer, batch_of, steps, start=0):
    cuts = []
    for step in range(start, start + steps):
        cuts.append(optimizer.draw(step / 20))
        loss_of(model, batch_of(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return cuts


def draw_until(optimizer, wanted):
    return next(first for first in iter(optimizer.draw, None) if first == wanted)


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class Products(TorchDispatchMode):
    """Counts multiplications of matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.count += args[0].numel() * args[1].shape[-1]
        return func(*args, **(kwargs or {}))


def test_uniform_draws_move_layer_i_with_probability_i_plus_one_over_b():
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    optimizer = DropMuon([p for layer in layers for p in layer.parameters()])
    optimizer.follow(layers)
    firsts = Counter(optimizer.draw() for _ in range(10_000))
    for layer, expected in enumerate((1 / 3, 2 / 3, 1.0)):
        moved = sum(firsts[first] for first in range(layer + 1)) / 10_000
        assert moved == pytest.approx(expected, abs=0.015)
    active = sum((3 - first) * count for first, count in firsts.items()) / 10_000
    assert active == pytest.approx(2.0, abs=0.025)


def test_chances():
    assert chances_of(4, 0.0, 0.7) == pytest.approx([0.25] * 4)
    early, late = chances_of(3, 0.5, 0.0), chances_of(3, 0.5, 1.0)
    total = 1 + math.exp(0.5) + math.exp(1.0)
    assert early == pytest.approx([math.exp(1.0) / total, math.exp(0.5) / total, 1 / total])
    assert late == pytest.approx(early[::-1])
    assert chances_of(2000, 10.0, 0.0)[0] == pytest.approx(1.0, abs=1e-4)  # no overflow


def test_draws_follow_seed_and_step(llama):
    sequences = []
    for seed in (0, 0, 1):
        optimizer = followed(llama(), seed)
        sequences.append([optimizer.draw() for _ in range(40)])
    assert sequences[0] == sequences[1] != sequences[2]
    assert set(sequences[0]) == {0, 1, 2}


@pytest.mark.parametrize("tied", [True, False])
def test_chain_of_a_language_model(llama, tied):
    model = llama(tied=tied)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chain = [sorted(names[id(parameter)] for parameter in layer) for layer in chain_of(model)]
    table, head = ["model.embed_tokens.weight"], ["lm_head.weight", "model.norm.weight"]
    blocks = [sorted(name for name in names.values() if f"layers.{index}." in name) for index in range(2)]
    assert len(blocks[0]) == len(blocks[1]) == 9
    assert chain == ([*blocks, [*table, "model.norm.weight"]] if tied else [table, *blocks, head])


def test_chain_of_other_models():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=3, n_head=2, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config)
    chain = chain_of(model)
    assert [len(layer) for layer in chain] == [2, 12, 12, 12, 3]
    assert any(parameter is model.transformer.wpe.weight for parameter in chain[0])
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))
    optimizer = DropMuon(network.parameters())
    optimizer.follow(network)
    assert {optimizer.draw() for _ in range(20)} == {0, 1}
    with pytest.raises(ModelError, match="decoder blocks") as caught:
        optimizer.follow(torch.nn.Linear(2, 2))
    assert "list" in caught.value.fix


def test_the_whole_network_is_muon_bit_for_bit(llama, batch_of):
    """shift 10 at progress 0 draws the first layer every time."""
    models = [llama(tied=False), llama(tied=False)]
    drop, muon = followed(models[0], shift=10.0), Muon(parameter_groups(models[1], weight_decay=0.1), lr=0.01)
    for step in range(4):
        assert drop.draw(0.0) == 0
        for model, optimizer in zip(models, (drop, muon), strict=True):
            loss_of(model, batch_of(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("tied", [True, False])
def test_layers_before_the_cut_stay_bit_for_bit(llama, batch_of, tied):
    model = llama(tied=tied)
    optimizer = followed(model)
    train(model, optimizer, batch_of, 6)
    chain = chain_of(model)
    for first in range(len(chain)):
        before = weights_of(model)
        state = copy.deepcopy(optimizer.state_dict()["state"])
        draw_until(optimizer, first)
        loss_of(model, batch_of(50 + first)).backward()
        optimizer.step()
        optimizer.zero_grad()
        after, names = optimizer.state_dict()["state"], [name for name, _ in model.named_parameters()]
        still = {id(parameter) for layer in chain[:first] for parameter in layer}
        position = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
        for name in names:
            parameter = model.get_parameter(name)
            unchanged = torch.equal(parameter, before[name])
            assert unchanged == (id(parameter) in still), name
            index = position[id(parameter)]
            same = all(torch.equal(after[index][key], state[index][key]) for key in state[index])
            assert same == (id(parameter) in still), name


def test_gradients_behind_the_cut_are_those_of_the_whole_network(llama, batch_of):
    model = llama(tied=False)
    loss_of(model, batch_of(0)).backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer = followed(model)
    for first, layer in enumerate(chain_of(model)):
        optimizer.zero_grad()
        draw_until(optimizer, first)
        loss_of(model, batch_of(0)).backward()
        there = {id(p) for later in chain_of(model)[first:] for p in later}
        for name, parameter in model.named_parameters():
            if id(parameter) in there:
                assert torch.equal(parameter.grad, whole[name]), name
            else:
                assert parameter.grad is None, name
        assert layer


def test_a_tied_table_gets_the_gradient_of_the_head_alone(llama, batch_of):
    model = llama(tied=True)
    twin = llama(tied=False)
    twin.load_state_dict(model.state_dict() | {"lm_head.weight": model.model.embed_tokens.weight})
    loss_of(twin, batch_of(0)).backward()
    as_input, as_head = twin.model.embed_tokens.weight.grad, twin.lm_head.weight.grad
    optimizer = followed(model)
    for first, expected in ((0, as_input + as_head), (1, as_head), (2, as_head)):
        optimizer.zero_grad()
        draw_until(optimizer, first)
        loss_of(model, batch_of(0)).backward()
        torch.testing.assert_close(model.model.embed_tokens.weight.grad, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_way_back_ends_at_the_cut(llama, batch_of, tied):
    """Multiplications of the backward pass: every layer that stays saves what it cost."""
    model = llama(tied=tied)
    optimizer = followed(model)
    counts = []
    for first in range(len(chain_of(model))):
        draw_until(optimizer, first)
        loss = loss_of(model, batch_of(0))
        with Products() as products:
            loss.backward()
        counts.append(products.count)
    rows, width, table = 16 * 12, 16, 37
    head = 2 * rows * width * table
    assert all(one < two for one, two in itertools.pairwise(counts[::-1]) if two != counts[0] or tied)
    assert counts[-1] == head
    # Two blocks cost the same on the way back, but for the way into the first one.
    assert counts[0] > 1.8 * (counts[-2] - head)
    assert counts[-2] < 0.65 * counts[0]


def test_after_a_step_everything_wants_gradients_again_and_nothing_else_does(llama, batch_of):
    model = llama(tied=True)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    optimizer = followed(model)
    draw_until(optimizer, 2)
    assert not model.model.layers[1].mlp.up_proj.weight.requires_grad
    assert len(model.model.embed_tokens._forward_hooks) == 1
    loss_of(model, batch_of(0)).backward()
    optimizer.step()
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert not model.model.embed_tokens._forward_hooks
    draw_until(optimizer, 1)
    optimizer.skipped(None)
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]


def test_without_draw_and_with_a_closure_the_walk_is_the_same(llama, batch_of):
    """Where the gradients are complete, step skips by itself; a closure is run behind the cut."""
    models = [llama(tied=False) for _ in range(3)]
    optimizers = [followed(model) for model in models]
    train(models[0], optimizers[0], batch_of, 6)
    for step in range(6):
        loss_of(models[1], batch_of(step)).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()

        def closure(step=step):
            optimizers[2].zero_grad()
            loss = loss_of(models[2], batch_of(step))
            loss.backward()
            return loss

        optimizers[2].step(closure)
    for one, two, three in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_layers_that_have_never_moved_have_state(llama, batch_of):
    """Checkpoints of sharded optimizers hold it for all parameters or fail."""
    state = []
    for wanted in (3, 0):
        model = llama(tied=False).bfloat16()
        optimizer = followed(model)
        draw_until(optimizer, wanted)
        loss_of(model, batch_of(0)).backward()
        optimizer.step()
        state.append(
            [{key: value.shape for key, value in one.items()} for one in optimizer.state_dict()["state"].values()]
        )
    keys = [sorted(map(str, one)) for one in state]
    assert keys[0] == keys[1]
    assert len(keys[0]) == len(list(model.parameters()))


def test_state_round_trip_goes_on_with_the_same_draws(llama, batch_of):
    model = llama()
    optimizer = followed(model, seed=3)
    train(model, optimizer, batch_of, 4)
    other = copy.deepcopy(model)
    resumed = followed(other, seed=3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, batch_of, 6, start=4) == train(other, resumed, batch_of, 6, start=4)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(small, tmp_path):
    from safetensors.torch import load_file

    from thalweg import resume
    from thalweg.runs import Run
    from thalweg.sessions.train import train as train_recipe

    recipe = small("drop_muon:shift=0.5+linear", training__batch_size=4)
    whole = train_recipe(recipe, tmp_path / "whole", quiet=True, show=False)
    # As if it had been killed after its checkpoint of step 8.
    shutil.copytree(whole.folder, tmp_path / "cut", symlinks=True)
    run = Run.open(tmp_path / "cut")
    shutil.rmtree(run.checkpoints / "step-00000012")
    metrics = run.folder / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines() if '"finish"' not in line))
    again = resume(run.folder, quiet=True, show=False)
    assert again.step == 12
    one, two = (load_file(result.folder / "checkpoints/latest/model.safetensors") for result in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_compiled_blocks_cut_alike(llama, batch_of):
    models = [llama(), llama()]
    for block in models[1].model.layers:
        block.compile(backend="eager")
    for model in models:
        train(model, followed(model), batch_of, 6)
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_mistakes_are_named():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(RecipeError, match="chain") as caught:
        DropMuon([weight]).draw()
    assert "follow" in caught.value.fix
    with pytest.raises(RecipeError, match="shift"):
        DropMuon([weight], shift=-1.0)


LAYERS = ((4, 5), (5, 5), (5, 3))


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(*sides) for sides in LAYERS)).double()


def several_steps(model, layers, rank=0, ranks=1):
    """Six steps on this rank's rows of the global batch."""
    optimizer = DropMuon(model.parameters(), lr=0.05, weight_decay=0.1)
    optimizer.follow(layers, seed=12)
    cuts = []
    for step in range(6):
        cuts.append(optimizer.draw())
        inputs = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model(inputs[rank * 6 // ranks : (rank + 1) * 6 // ranks]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return cuts


def one_rank(rank, folder):
    """One rank of two, under FSDP2 and then under DDP; rank 0 writes what comes out."""
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = small_network()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    several_steps(model, model, rank, 2)
    full = {f"fsdp.{name}": parameter.detach().full_tensor() for name, parameter in model.named_parameters()}
    model = small_network()
    wrapped = torch.nn.parallel.DistributedDataParallel(
        model, gradient_as_bucket_view=True, find_unused_parameters=DropMuon.partial_backward
    )
    several_steps(wrapped, model, rank, 2)
    full |= {f"ddp.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    if rank == 0:
        save_file(full, f"{folder}/result.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_equal_one(two_ranks, tmp_path):
    model = small_network()
    assert set(several_steps(model, model)) == {0, 1, 2}
    result = two_ranks(__file__, tmp_path)
    for name, parameter in model.named_parameters():
        for kind in ("fsdp", "ddp"):
            torch.testing.assert_close(result[f"{kind}.{name}"], parameter.detach(), atol=1e-11, rtol=0)


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), sys.argv[2])
