"""Nexus: the walk against numbers worked out by hand, its limits, the trainer's micro-batches, and two ranks."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.optimizers import Nexus
from thalweg.methods.optimizers.nexus import InnerWalk

# Two sources, L_i = (x - c_i)^T A_i (x - c_i) / 2, looked at from the origin.
HESSIANS = (torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.0, 0.5], [0.5, 3.0]]).double())
CENTRES = (torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double())


def walk(order, gamma, normalize=True):
    x = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    inner = InnerWalk([x], gamma, normalize)
    for source in order:
        away = x - CENTRES[source]
        (0.5 * away @ HESSIANS[source] @ away).backward()
        inner.advance()
    inner.finish()
    assert torch.equal(x.detach(), torch.zeros(2).double())
    return x.grad


def test_the_worked_example():
    """G over gamma is the sum of the two directions; ours is their mean."""
    for order, expected in (((0, 1), (-0.113436, -0.099093)), ((1, 0), (-0.116314, -0.093631))):
        torch.testing.assert_close(0.2 * walk(order, 0.1), torch.tensor(expected).double(), atol=1e-6, rtol=0)
    mean = walk((0, 1), 0.1) + walk((1, 0), 0.1)
    torch.testing.assert_close(mean, torch.tensor([-1.148754, -0.963622]).double(), atol=1e-6, rtol=0)


def test_gamma_zero_is_normalised_accumulation():
    first, second = torch.tensor([-2.0, 0.0]).double(), torch.tensor([-0.5, -3.0]).double()
    expected = (first / first.norm() + second / second.norm()) / 2
    torch.testing.assert_close(walk((0, 1), 0.0), expected, atol=1e-15, rtol=0)
    torch.testing.assert_close(2 * expected, torch.tensor([-1.164399, -0.986394]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(walk((0, 1), 1e-9), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    # The plain walk's term is minus half the gradient of <g_1, g_2>; minus half that of their cosine would be
    # (0.146626, 0.246598): the source's identity does not hold to the letter.
    [(True, (0.146626, 0.222166)), (False, (1.5, 2.0))],
)
def test_the_first_order_term_averaged_over_the_order(normalize, expected):
    gamma = 1e-6
    count = 2 if normalize else 1
    mean = count * (walk((0, 1), gamma, normalize) + walk((1, 0), gamma, normalize)) / 2
    term = (mean - count * walk((0, 1), 0.0, normalize)) / gamma
    torch.testing.assert_close(term, torch.tensor(expected).double(), atol=1e-4, rtol=0)


def test_norm_is_one_only_where_all_agree():
    assert walk((0, 0), 0.3).norm() == pytest.approx(1.0, abs=1e-12)
    assert walk((0, 1), 0.1).norm() < 0.8
    assert walk((1,), 0.1).norm() == pytest.approx(1.0, abs=1e-12)


def test_one_part_and_no_norm_is_the_plain_gradient():
    assert torch.equal(walk((1,), 0.1, normalize=False), torch.tensor([-0.5, -3.0]).double())


def test_a_zero_gradient_has_no_direction_and_unused_parameters_stay():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    inner = InnerWalk([used, unused], gamma=0.1)
    for factor in (0.0, 2.0):
        (factor * used).sum().backward()
        inner.advance()
    inner.finish()
    torch.testing.assert_close(used.grad, torch.full((3,), 0.5 / 3**0.5))
    assert unused.grad is None
    assert torch.equal(unused.detach(), torch.ones(2))


def gradient_of(trainer):
    return torch.cat([parameter.grad.flatten() for parameter in trainer.parameters])


class Keep:
    """Remembers the gradient that the optimizer is given."""

    def gradients(self, trainer):
        self.seen = gradient_of(trainer)

    def state_dict(self):
        return {}


def test_the_trainer_walks_through_its_micro_batches(trainer_with, batch_of):
    """Against a plain loop over four parts of the batch with copies of the model."""
    keep = Keep()
    trainer = trainer_with(callbacks=[Nexus(gamma=0.2, parts=4), keep])
    model = copy.deepcopy(trainer.model)
    trainer.steps(1)
    total = 0.0
    for part in range(4):
        batch = {key: value[4 * part : 4 * part + 4] for key, value in batch_of(0).items()}
        model.zero_grad()
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten()).backward()
        slope = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        slope = slope / slope.norm()
        total = total + slope / 4
        vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.nn.utils.vector_to_parameters(vector - 0.2 * slope, model.parameters())
    torch.testing.assert_close(keep.seen, total, atol=1e-6, rtol=1e-4)


def test_without_norm_and_with_gamma_zero_it_is_accumulation(trainer_with):
    plain, keep = Keep(), Keep()
    trainer_with(callbacks=[plain]).steps(1)
    trainer_with(callbacks=[Nexus(gamma=0.0, normalize=False), keep]).steps(1)
    torch.testing.assert_close(keep.seen, plain.seen, atol=1e-7, rtol=1e-4)


def test_memory_may_ask_for_more_parts(trainer_with):
    trainer = trainer_with(callbacks=[Nexus(parts=4)])
    assert trainer.plan["micro_batch"] == 4
    trainer.plan["micro_batch"] = 2
    trainer.call("setup")
    assert trainer.plan["micro_batch"] == 2


def test_in_a_run(small, tmp_path):
    """The house's trainer: weights are back after each step, and the norm of the gradient is at most 1."""
    from thalweg.runs import Run
    from thalweg.sessions.train import train

    recipe = small("adamw+linear+nexus:gamma=0.5", budget="6 steps")
    result = train(recipe, tmp_path / "run", quiet=True, show=False)
    norms = [line["grad_norm"] for line in Run.open(result.folder).metrics("step")]
    assert len(norms) == 6
    assert all(0.1 < norm <= 1.0 + 1e-5 for norm in norms)
    assert len(set(norms)) == 6


@pytest.mark.parametrize(("options", "said"), [({"gamma": -0.1}, "gamma"), ({"parts": 0}, "parts")])
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        Nexus(**options)


def steps_of(model, forward, rank=0, ranks=1):
    """Three steps of two parts on this rank's rows of the global batch, with plain gradient descent."""
    inner = InnerWalk(model.parameters(), gamma=0.3)
    for step in range(3):
        for part in range(2):
            generator = torch.Generator().manual_seed(10 * step + part)
            inputs = torch.randn(6, 4, dtype=torch.float64, generator=generator)
            forward(inputs[rank * 6 // ranks : (rank + 1) * 6 // ranks]).square().mean().backward()
            inner.advance()
        inner.finish()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()


def one_rank(rank, folder):
    """One rank of two, under FSDP2 and then under DDP; rank 0 writes what comes out."""
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = small_network()
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    steps_of(model, model, rank, 2)
    full = {f"fsdp.{name}": parameter.detach().full_tensor() for name, parameter in model.named_parameters()}
    model = small_network()
    steps_of(model, torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True), rank, 2)
    full |= {f"ddp.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    if rank == 0:
        save_file(full, f"{folder}/result.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_take_the_walk_of_one(two_ranks, tmp_path):
    model = small_network()
    steps_of(model, model)
    result = two_ranks(__file__, tmp_path)
    for name, parameter in model.named_parameters():
        for kind in ("fsdp", "ddp"):
            torch.testing.assert_close(result[f"{kind}.{name}"], parameter.detach(), atol=1e-12, rtol=0)


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), sys.argv[2])
