"""Every optimizer under FSDP2: two ranks walk as one process does, and a state that was taken and given back goes on
bit for bit. Both ranks run all cases in one go; each case is then a test of its own."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from thalweg import catalog
from thalweg.models.parameter_groups import parameter_groups

# Steps before and after the round trip of the state.
BEFORE, AFTER = 3, 3
VARIANTS = [
    ("galore", {"update_proj_gap": 2}),
    ("fira", {"update_proj_gap": 2, "projector": "dct", "residual": "paper"}),
    ("fira", {"update_proj_gap": 2, "scaling": "matrix"}),
    ("dct_lowrank", {"update_proj_gap": 2, "error_feedback": "exact"}),
    ("dct_lowrank", {"error_feedback": "8bit", "transform": "fft", "ell_norm": 2}),
    ("dct_lowrank", {"error_feedback": "4bit", "rotate": False}),
    ("lars", {"normalise": "momentum"}),
    ("sam", {"rho": 0.5, "adaptive": True}),
    ("sam", {"base": "muon"}),
]
CASES = [(name, {}) for name, card in catalog.load().items() if card.slot == "optimizer"] + VARIANTS
NAMES = [" ".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, options in CASES]


class Model(torch.nn.Module):
    """A tall and a wide matrix, a stack of matrices and vectors; 9, 7 and 3 rows do not divide by two ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tall, self.wide = torch.nn.Linear(6, 9), torch.nn.Linear(9, 7)
        self.experts = torch.nn.Parameter(torch.randn(3, 7, 5) / 3)
        self.double()

    def forward(self, inputs):
        return torch.einsum("bi,eij->bej", self.wide(self.tall(inputs).tanh()), self.experts)


def build(model, case):
    name, options = CASES[case]
    return catalog.resolve(name)(parameter_groups(model), lr=0.05, weight_decay=0.1, **options)


def walk(model, optimizer, steps):
    for step in steps:
        inputs = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))

        def closure(inputs=inputs):
            optimizer.zero_grad()
            loss = (model(inputs) - 1.0).square().mean()
            loss.backward()
            return loss

        closure()
        optimizer.step(*([closure] if getattr(optimizer, "second_look", False) else []))
        optimizer.zero_grad()


def sharded_case(case, mesh):
    """The weights of a straight walk, and of one that went on with another optimizer object, as whole tensors."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    model = Model()
    fully_shard(model, mesh=mesh)
    optimizer = build(model, case)
    walk(model, optimizer, range(BEFORE))
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    state = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    walk(model, optimizer, range(BEFORE, BEFORE + AFTER))
    straight = {name: parameter.detach().full_tensor() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)
    resumed = build(model, case)
    set_optimizer_state_dict(model, resumed, state, options=options)
    walk(model, resumed, range(BEFORE, BEFORE + AFTER))
    again = {name: parameter.detach().full_tensor() for name, parameter in model.named_parameters()}
    return straight, again


def one_rank(rank, folder):
    """One rank of two over all cases; rank 0 writes what comes out, and why a case did not."""
    import traceback

    import torch.distributed as dist
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    tensors, failures = {}, {}
    for case in range(len(CASES)):
        try:
            straight, again = sharded_case(case, mesh)
        except Exception:  # both ranks run the same code on the same shapes, and fail together
            failures[case] = traceback.format_exc()
            continue
        tensors |= {f"{case}/straight/{name}": value for name, value in straight.items()}
        tensors |= {f"{case}/again/{name}": value for name, value in again.items()}
    if rank == 0:
        save_file(tensors, f"{folder}/result.safetensors")
        with open(f"{folder}/failures.json", "w", encoding="utf-8") as file:
            json.dump(failures, file)
    # Nobody leaves while another rank may still be talking to it.
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(two_ranks, tmp_path_factory):
    """What two ranks found for all cases: (tensors, failures)."""
    folder = tmp_path_factory.mktemp("ranks")
    tensors = two_ranks(__file__, folder)
    failures = json.loads((folder / "failures.json").read_text(encoding="utf-8"))
    return tensors, failures


@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_two_sharded_ranks_equal_one(case, sharded):
    tensors, failures = sharded
    assert str(case) not in failures, failures[str(case)]
    model = Model()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    walk(model, build(model, case), range(BEFORE + AFTER))
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, start[name]), name
        straight = tensors[f"{case}/straight/{name}"]
        torch.testing.assert_close(straight, parameter.detach(), atol=1e-12, rtol=0)
        assert torch.equal(tensors[f"{case}/again/{name}"], straight), name


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), sys.argv[2])
