"""A tiny model and a loop in the shape of the trainer's box, for the contract suites of all families."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from thalweg import catalog
from thalweg.models.surgery import installed, sets_rates

VOCABULARY, CONTEXT, BATCH = 37, 12, 16


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """In every test of this folder."""


def tiny_llama(seed: int = 0, tied: bool = True, dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def make_batch(seed: int, rows: int = BATCH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, VOCABULARY, (rows, CONTEXT + 1), generator=generator)
    # Half of the rows repeat one token, so that sequences differ in how hard they are.
    tokens[::2] = tokens[::2, :1]
    return {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:].clone()}


class ToyTrainer:
    """The box of docs and design, with what a callback may use of a trainer."""

    def __init__(self, total_steps: int = 8, seed: int = 0, callbacks: Any = (), reweighting: Any = None) -> None:
        self.seed, self.rank, self.world_size = seed, 0, 1
        # What sets rates goes with an optimizer of its kind, which the one here is not.
        self.model = installed([part for part in callbacks if not sets_rates(part)], tiny_llama(seed))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.1, momentum=0.9)
        self.objective = catalog.resolve("cross_entropy")()
        self.schedule = catalog.resolve("linear")()
        self.recipe = self.run = None
        self.plan = {"context": CONTEXT, "batch_size": BATCH, "micro_batch": BATCH, "peak_lr": 0.1}
        self.step_tokens, self.step_flops, self.lr_scale = BATCH * CONTEXT, 1.0, 1.0
        self.reweighting = reweighting
        self.callbacks = [*callbacks, *([reweighting] if reweighting is not None else [])]
        self.clock = SimpleNamespace(step=0, tokens=0, seconds=0.0, flops=0.0, progress=0.0)
        self.total_steps = total_steps
        self.metrics: dict[str, Any] = {}
        self.loss_history: list[float] = []
        self.metric_history: list[dict[str, Any]] = []
        self.call("setup")

    def held_out_batch(self) -> dict[str, torch.Tensor]:
        return make_batch(10_000, rows=3)

    def call(self, hook: str, value: Any = None) -> Any:
        for part in self.callbacks:
            method = getattr(part, hook, None)
            if method is not None:
                result = method(self) if value is None else method(self, value)
                value = value if result is None else result
        return value

    def steps(self, count: int) -> ToyTrainer:
        for _ in range(count):
            self.clock.progress = (self.clock.step + 1) / self.total_steps
            self.metrics = {}
            batch = self.call("batch", make_batch(self.clock.step))
            self.loss_history.append(self.backward(batch))
            self.call("raw_gradients", batch)
            self.call("gradients")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.clock.step += 1
            self.call("step")
            self.metric_history.append(dict(self.metrics))
        return self

    def backward(self, batch: dict[str, torch.Tensor]) -> float:
        rows, micro, total = len(batch["targets"]), self.plan["micro_batch"], 0.0
        for start in range(0, rows, micro):
            part = {key: value[start : start + micro] for key, value in batch.items()}
            share = len(part["targets"]) / rows
            logits = self.model(input_ids=part["input_ids"], use_cache=False).logits
            losses = self.call("losses", self.objective(logits, part["targets"]))
            total += float(losses.detach().mean()) * share
            if self.reweighting is not None:
                losses = losses * self.reweighting.weights(losses.detach())
            (self.call("loss", losses.mean()) * share).backward()
            self.call("accumulated", start + micro >= rows)
        return total

    def resumed(self, callbacks: Any = (), reweighting: Any = None) -> ToyTrainer:
        """A new trainer that continues from here, with new parts that take over the old ones' state."""
        other = ToyTrainer(self.total_steps, self.seed, callbacks, reweighting)
        other.model.load_state_dict(self.model.state_dict())
        other.optimizer.load_state_dict(self.optimizer.state_dict())
        other.clock = SimpleNamespace(**vars(self.clock))
        for old, new in zip(self.callbacks, other.callbacks, strict=True):
            new.load_state_dict(old.state_dict())
        return other


@pytest.fixture
def trainer_with() -> Callable[..., ToyTrainer]:
    return ToyTrainer


@pytest.fixture
def llama() -> Callable[..., LlamaForCausalLM]:
    return tiny_llama


@pytest.fixture
def batch_of() -> Callable[..., dict[str, torch.Tensor]]:
    return make_batch


def free_port():

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="session")
def two_ranks():  # type: ignore[no-untyped-def]
    """Runs a test's own file as a script, `FILE RANK FOLDER`, on two ranks, and reads the tensors that rank 0 leaves.

    What goes wrong on a rank is seen here, from whatever folder pytest runs; without gloo the test is skipped.
    """
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")

    def run(file: str, folder: Path, result: str | None = "result.safetensors"):  # type: ignore[no-untyped-def]
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
        shared |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        ranks = [
            subprocess.Popen(
                [sys.executable, file, str(rank), str(folder)],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
            )
            for rank in range(2)
        ]
        errors = [process.communicate(timeout=600)[1].decode() for process in ranks]
        assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
        return load_file(folder / result) if result else None

    return run
