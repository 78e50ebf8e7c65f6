"""The contestants of throughput.py: each loop runs in a process of its own and takes steps when it is asked to."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

LONG = 1_000_000  # steps; nothing that happens a few times a run happens here


class Turns:
    """The contestant's end of the pipe: one line says how many steps to take, one line tells how long they took."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints must not look like an answer
        self.peak_wanted = False

    def next(self) -> int:
        """The number of steps to take; ends the process when nobody asks any more."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        asked = json.loads(line)
        self.peak_wanted = asked["peak"]
        return asked["steps"]

    def tell(self, **numbers: Any) -> None:
        self._answers.write(json.dumps(numbers) + "\n")
        self._answers.flush()

    def serve(self, step: Callable[[], None], around: Callable[[], AbstractContextManager[Any]], **facts: Any) -> None:
        """Take steps when asked, for as long as someone asks."""
        self.tell(**facts)
        while True:
            steps = self.next()
            before = peaks() if self.peak_wanted else {}
            with around():
                began = time.perf_counter()
                for _ in range(steps):
                    step()
                seconds = time.perf_counter() - began
            after = peaks() if self.peak_wanted else {}
            self.tell(seconds=seconds, peaks={name: max(before[name], after[name]) for name in before})


def peaks() -> dict[str, float]:
    """FLOP/s of the best matrix product, right now, with this process's threads."""
    from thalweg.planner.machine_speed import matmul_flops

    return {name: matmul_flops("cpu", name) for name in ("float32", "bfloat16")}


def planned(said: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """(recipe, plan, token store) of what the command line said."""
    from thalweg.recipe import Recipe
    from thalweg.sessions.train import make_plan

    never = f"{LONG} steps"
    training = {"batch_size": said["batch_size"], "precision": said["precision"], "checkpoint_every": never}
    recipe = Recipe.parse(
        said["arm"],
        budget=never,
        model=said["model"],
        data={"corpus": said["corpus"], "tokenizer": said["tokenizer"], "context": said["context"]},
        training={**training, "evaluate_every": never, "compile": "on" if said["compile"] else "off", "device": "cpu"},
    )
    return recipe, *make_plan(recipe, quiet=True)


def thalweg_loop(said: dict[str, Any], turns: Turns) -> None:
    """The Trainer with all its callbacks, the live line drawn as on a terminal (to nowhere)."""
    from rich.console import Console

    from thalweg.runs import Run
    from thalweg.sessions.assemble import assemble
    from thalweg.training.callbacks.live import LiveLine
    from thalweg.training.parallel import Parallel

    recipe, plan, store = planned(said)
    run = Run.create(Path(said["folder"]) / "run")
    trainer = assemble(recipe, plan, store, run, Parallel("cpu"), started=time.monotonic())
    live = next(part for part in trainer.callbacks if isinstance(part, LiveLine))
    live.console = Console(file=open(os.devnull, "w"), force_terminal=True, width=120)  # noqa: SIM115 - lives on
    trainer.setup()
    assert live.progress is not None

    @contextmanager
    def drawing() -> Iterator[None]:
        # The thread that draws belongs to Thalweg's time and to nobody else's.
        live.progress.start()
        yield
        live.progress.stop()

    turns.serve(trainer.train_step, drawing, **facts(trainer.model, trainer.plan))


def bare_loop(said: dict[str, Any], turns: Turns) -> None:
    """The least code that does the same arithmetic: what a careful person would write by hand."""
    import torch

    from thalweg.models.attention import use_fastest_attention
    from thalweg.models.blocks import decoder_blocks
    from thalweg.models.parameter_groups import parameter_groups
    from thalweg.sessions.assemble import build_model
    from thalweg.training import process
    from thalweg.training.token_losses import TokenLosses

    recipe, plan, store = planned(said)  # sets threads and allocator as the Trainer has them
    chosen = plan["chosen"]
    context, batch = chosen["context"], chosen["batch_size"]
    micro = max(size for size in range(1, min(batch, chosen["micro_batch"]) + 1) if batch % size == 0)
    chosen["micro_batch"] = micro
    process.set_threads(chosen["threads"])
    model = build_model(chosen, 0).train()
    use_fastest_attention(model, torch.device("cpu"), chosen["precision"], context)
    if said["compile"]:
        for block in decoder_blocks(model):
            block.compile()
    losses = TokenLosses(model, recipe.objective.build())
    groups = parameter_groups(model, chosen["weight_decay"], chosen["lr_scale"])
    optimizer = recipe.optimizer.build(groups, lr=chosen["peak_lr"])
    tokens = torch.from_numpy(store.train.read(0, store.train.token_count))
    within = torch.arange(context + 1)

    def step() -> None:
        starts = torch.randint(len(tokens) - context, (batch, 1))
        for part in tokens[starts + within].split(micro):
            with process.autocast(torch.device("cpu"), chosen["precision"]):
                loss = losses(part[:, :-1], part[:, 1:]).mean()
            (loss * (micro / batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    turns.serve(step, ExitStack, **facts(model, chosen))


def model_and_windows(said: dict[str, Any]) -> tuple[Any, Any]:
    """The same model and the same windows without anything else of Thalweg's: no allocator setting above all."""
    from thalweg.data import WindowSampler, prepare
    from thalweg.models.ladder import build, nearest

    store = prepare(said["corpus"], tokenizer=said["tokenizer"], progress=False)
    model = build(nearest(said["model"]), store.vocab_size, said["context"], 0)
    return model, WindowSampler(store.train, said["context"], said["batch_size"], 0)


def plain_loop(said: dict[str, Any], turns: Turns) -> None:
    """A loop as tutorials write it: the model's own loss over full logits, fused AdamW, the default allocator."""
    import torch

    model, sampler = model_and_windows(said)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(model) if said["compile"] else model
    position = 0

    def step() -> None:
        nonlocal position
        windows = sampler.batch(position)["input_ids"]
        with torch.autocast("cpu", torch.bfloat16, enabled=said["precision"] == "bfloat16"):
            loss = forward(input_ids=windows, labels=windows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        position += 1

    turns.serve(step, ExitStack, **facts(model, {"micro_batch": said["batch_size"], "precision": said["precision"]}))


def hugging_face_loop(said: dict[str, Any], turns: Turns) -> None:
    """`transformers.Trainer` with its defaults; between turns it waits in a callback."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, sampler = model_and_windows(said)

    class Windows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return sampler.windows

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(sampler._split.read(index * sampler.context, (index + 1) * sampler.context))
            return {"input_ids": row, "labels": row}

    class Waiting(TrainerCallback):
        left, began = 0, 0.0

        def ask(self) -> None:
            self.left, self.began = turns.next(), time.perf_counter()

        def on_train_begin(self, *arguments: Any, **named: Any) -> None:
            turns.tell(**facts(model, {"micro_batch": said["batch_size"], "precision": said["precision"]}))
            self.ask()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            self.left -= 1
            if self.left == 0:
                turns.tell(seconds=time.perf_counter() - self.began, peaks={})
                self.ask()

    arguments = TrainingArguments(
        output_dir=said["folder"],
        per_device_train_batch_size=said["batch_size"],
        bf16=said["precision"] == "bfloat16",
        use_cpu=True,
        max_steps=LONG,
        save_strategy="no",
        report_to="none",
    )
    Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[Waiting()]).train()


def facts(model: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """What the contestant decided, for the table."""
    import torch

    from thalweg.models.ladder import flops_per_token

    return {
        "flops_per_token": flops_per_token(model),
        "micro_batch": chosen["micro_batch"],
        "precision": chosen["precision"],
        "threads": torch.get_num_threads(),
    }


LOOPS = {"thalweg": thalweg_loop, "bare": bare_loop, "plain": plain_loop, "hugging_face": hugging_face_loop}


def serve(said: dict[str, Any]) -> None:
    """Be the contestant that was asked for."""
    LOOPS[said["loop"]](said, Turns())
