"""The peers of two_minutes.py: what people do today, each trained in a process of its own until its time is over.

nanoGPT is restated here from its published settings for a small CPU run (README: train_shakespeare_char on a CPU):
a GPT-2 block without biases, exact GELU, dropout 0, initialisation 0.02 with residual projections scaled down,
AdamW (not fused, as nanoGPT does on a CPU) with decay on matrices only, gradient norm clipped at 1, linear warm-up of
100 steps, cosine to a tenth at step 2000, that rate from there on. It evaluates every 250 steps; here it does not,
which leaves it that time for training. Its characters are bytes here.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SEPARATOR = 0  # closes a document in the byte text, as the end-of-text token does among tokens


# -- nanoGPT ------------------------------------------------------------------------------------------------------

NANO = {"context": 64, "batch": 12, "layers": 4, "heads": 4, "width": 128, "peak_lr": 1e-3, "min_lr": 1e-4}
NANO |= {"warmup": 100, "steps": 2000, "weight_decay": 0.1, "beta2": 0.99}


class Norm(nn.Module):
    """Layer norm without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class Block(nn.Module):
    """Causal self-attention and a feed-forward of four widths, each behind a norm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([Norm(width), Norm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class NanoGPT(nn.Module):
    """Byte ids [B, T] -> logits [B, T, 256]; input and output tables are one."""

    def __init__(self) -> None:
        super().__init__()
        width, layers = NANO["width"], NANO["layers"]
        self.table, self.places = nn.Embedding(256, width), nn.Embedding(NANO["context"], width)
        self.blocks = nn.ModuleList([Block(width, NANO["heads"]) for _ in range(layers)])
        self.norm = Norm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    @property
    def device(self) -> torch.device:
        return self.table.weight.device

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.table.weight)


class NanoLosses(nn.Module):
    """Cross-entropies [B, T], as `thalweg.models.evaluate` takes them from models that are not Hugging Face's."""

    def __init__(self, model: NanoGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(ids).flatten(0, 1), targets.flatten(), reduction="none").view_as(ids)


def nano_rate(step: int) -> float:
    if step < NANO["warmup"]:
        return NANO["peak_lr"] * (step + 1) / (NANO["warmup"] + 1)
    if step > NANO["steps"]:
        return NANO["min_lr"]
    share = (step - NANO["warmup"]) / (NANO["steps"] - NANO["warmup"])
    return NANO["min_lr"] + 0.5 * (1 + math.cos(math.pi * share)) * (NANO["peak_lr"] - NANO["min_lr"])


def train_nano(said: dict[str, Any]) -> dict[str, Any]:
    """Train until the time is over; writes model.safetensors."""
    from safetensors.torch import save_file

    torch.manual_seed(said["seed"])
    text = torch.from_numpy(np.fromfile(said["bytes"], np.uint8))
    model, context = NanoGPT(), NANO["context"]
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": NANO["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=NANO["peak_lr"], betas=(0.9, NANO["beta2"]))
    within, step, duration = torch.arange(context + 1), 0, 0.0
    while (began := time.monotonic()) + duration / 2 < said["deadline"]:
        for group in optimizer.param_groups:
            group["lr"] = nano_rate(step)
        rows = text[torch.randint(len(text) - context, (NANO["batch"], 1)) + within].long()
        loss = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, duration = step + 1, time.monotonic() - began
    ended = time.monotonic()
    save_file(dict(model.state_dict()), Path(said["folder"]) / "model.safetensors")
    return {"ended": ended, "steps": step, "tokens": step * NANO["batch"] * context}


def evaluate_nano(folder: Path, held_out: Any, most: int) -> Any:
    """Evaluation of a saved nanoGPT on the first `most` byte tokens, in windows of its own context."""
    from safetensors.torch import load_file

    from thalweg.models.evaluate import evaluate

    model = NanoGPT()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return evaluate(model, held_out, NANO["context"], 64, max_tokens=most, token_losses=NanoLosses(model))  # type: ignore[arg-type]


# -- the Hugging Face Trainer -------------------------------------------------------------------------------------


def train_hugging_face(said: dict[str, Any]) -> dict[str, Any]:
    """`transformers.Trainer` with its defaults (but `said["arguments"]`), ended by a callback when time is over."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from thalweg.data import TokenStore
    from thalweg.models.ladder import build, nearest

    store, context = TokenStore(said["store"]), said["context"]
    model = build(nearest(said["model"]), store.vocab_size, context, said["seed"], tie=said["tie"])

    class Windows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return store.train.token_count // context

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            row = torch.from_numpy(store.train.read(index * context, (index + 1) * context))
            return {"input_ids": row, "labels": row}

    class Deadline(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **named: Any) -> None:
            control.should_training_stop = time.monotonic() >= said["deadline"]

    arguments = TrainingArguments(
        output_dir=said["folder"],
        seed=said["seed"],
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        **said["arguments"],
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[Deadline()])
    trainer.train()
    ended = time.monotonic()
    model.save_pretrained(said["folder"])
    steps = trainer.state.global_step
    return {"ended": ended, "steps": steps, "tokens": steps * arguments.per_device_train_batch_size * context}


# -- bytes --------------------------------------------------------------------------------------------------------


class ByteSplit:
    """Documents as bytes, each closed by a zero byte: what `thalweg.models.evaluate` needs of a split."""

    def __init__(self, documents: list[bytes]) -> None:
        self.text = np.frombuffer(b"".join(document + bytes([SEPARATOR]) for document in documents), np.uint8)
        self.sizes = np.array([len(document) for document in documents], np.int64)
        self.token_count = len(self.text)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.text[start:stop].astype(np.int64)

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([[0], np.cumsum(self.sizes + 1)]), self.sizes


def documents_of(store: Any, split: Any) -> list[bytes]:
    """The documents of a split as they were before tokenization; their sizes are checked against the store's."""
    offsets, sizes = split.documents()
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    found = [store.tokenizer.decode(split.read(start, stop - 1)).encode() for start, stop in bounds]
    if [len(document) for document in found] != sizes.tolist() or any(SEPARATOR in document for document in found):
        raise SystemExit("the tokenizer does not give the documents back byte for byte")
    return found


def run(said: dict[str, Any]) -> None:
    """Be the peer that was asked for; what became of it goes to result.json."""
    result = {"nanogpt": train_nano, "hugging_face": train_hugging_face}[said["loop"]](said)
    (Path(said["folder"]) / "result.json").write_text(json.dumps(result))
