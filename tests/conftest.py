"""What many tests need: a small corpus, a cache of their own, one torch thread a worker."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no time limit that a busy machine could miss.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")

_SENTENCES = (
    "the valley water stone river bends low under old bridge light falls",
    "where reeds grow and stream finds its way",
)
_WORDS = " ".join(_SENTENCES).split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 120 documents, 150 kB, of sentences that a small model can learn something of."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for index in range(120):
        sentences = [
            " ".join(rng.choice(_WORDS) for _ in range(rng.randint(4, 12))).capitalize() + "." for _ in range(28)
        ]
        (folder / f"{index:03d}.txt").write_text(f"Chapter {index}\n\n" + " ".join(sentences) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder shared by all workers of this test session, away from the user's own."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "thalweg-cache"
    shared.mkdir(exist_ok=True)
    os.environ["THALWEG_CACHE"] = str(shared)
    return shared


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread, whatever a run before has asked for: other tests run beside this one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small(corpus: Path):  # type: ignore[no-untyped-def]
    """Makes recipes of a tiny model on the small corpus; dotted keys override."""
    from thalweg.recipe import Recipe

    def make(arm: str = "", **changes):  # type: ignore[no-untyped-def]
        fields = {
            "budget": "12 steps",
            "model": "0.2M",
            "data": {"corpus": str(corpus), "tokenizer": "bpe:512", "context": 32, "held_out": 0.1},
            "training": {"batch_size": 8, "peak_lr": 0.005, "weight_decay": 0.1, "checkpoint_every": "4 steps"},
        }
        for key, value in changes.items():
            table, _, name = key.rpartition("__")
            (fields[table] if table else fields)[name or key] = value
        return Recipe.parse(arm, **fields)

    return make


@pytest.fixture
def on_assembly(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Has a function look at the trainer of every run of the test before it begins; the last one that is said."""
    from thalweg.sessions import train as session

    real = session.assemble

    def arrange(change):  # type: ignore[no-untyped-def]
        def assemble(*arguments, **options):  # type: ignore[no-untyped-def]
            trainer = real(*arguments, **options)
            change(trainer)
            return trainer

        monkeypatch.setattr(session, "assemble", assemble)

    return arrange


class StopAt:
    """Asks the run to stop after a step, as a signal would."""

    def __init__(self, step: int | None) -> None:
        self.at = step

    def step(self, trainer) -> None:  # type: ignore[no-untyped-def]
        if trainer.clock.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def stop_at(on_assembly):  # type: ignore[no-untyped-def]
    """Stops the runs of a test after a step; None lets them end."""

    def arrange(step: int | None) -> None:
        # Before the house's own callbacks, so that the signal has arrived when they look.
        on_assembly(lambda trainer: trainer.callbacks.insert(0, StopAt(step)))

    return arrange


@pytest.fixture
def whole_and_resumed(stop_at, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Trains a recipe twice, the second time stopped after a step and resumed: two runs that end with equal weights."""
    import torch
    from safetensors.torch import load_file

    from thalweg.sessions import train as session

    def both(recipe, step: int):  # type: ignore[no-untyped-def]
        whole = session.train(recipe, tmp_path / "whole", quiet=True, show=False)
        stop_at(step)
        stopped = session.train(recipe, tmp_path / "parts", quiet=True, show=False)
        assert stopped.step == step
        stop_at(None)
        resumed = session.resume(stopped.folder, quiet=True, show=False)
        one, other = (load_file(run.checkpoint / "model.safetensors") for run in (whole, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        return whole, resumed

    return both


_SIZES = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
_LLAMA_LIKE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 32}
_GROUPED = {**_LLAMA_LIKE, "num_key_value_heads": 1, "head_dim": 8}
_ARCHITECTURES = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 5},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_positions": 32},
    "opt": {
        "hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2, "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
    },
    "gpt_neox": _LLAMA_LIKE,
    "gemma3_text": {**_GROUPED, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


@pytest.fixture(scope="session")
def causal_model():  # type: ignore[no-untyped-def]
    """Makes random causal language models of two blocks by the name of their architecture, 61 tokens, context 32.

    Gains and biases are random too, so that each of them matters.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(architecture: str, tied: bool = False, attention: str = "sdpa", dtype=None, **changes):  # type: ignore[no-untyped-def]
        sizes = {**_SIZES, **_ARCHITECTURES[architecture], "num_hidden_layers": 2, **changes}
        config = AutoConfig.for_model(architecture, tie_word_embeddings=tied, **sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return model.to(dtype or torch.float32).eval()

    return make


@pytest.fixture(scope="session")
def architectures() -> list[str]:
    return list(_ARCHITECTURES)
