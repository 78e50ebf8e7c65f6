"""Claims about what a trained model can do without, on a tiny model: what is measured is so, and they can fail."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from thalweg.arena.claims import dropped_halves, essential_knee
from thalweg.arena.claims.spread import spread
from thalweg.models.text_loss import text_loss


class Text:
    """5000 tokens, each the one before plus one, but for some."""

    token_count = 5000

    def read(self, start, stop):
        noise = np.random.default_rng(0).integers(0, 37, self.token_count)
        places = np.arange(self.token_count)
        return np.where(noise < 5, noise, places % 37)[start:stop].astype(np.int64)


@dataclass
class Source:
    given: Any

    def model(self):
        return copy.deepcopy(self.given)

    def calibration(self, windows, seed=0):
        return spread(Text(), windows + seed, 128)[seed:]

    @property
    def store(self):
        return type("Store", (), {"held_out": Text()})


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 128}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=37, num_hidden_layers=3, bos_token_id=0, eos_token_id=1, **sizes))
    text = spread(Text(), 8, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        model(input_ids=text, labels=text, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Source(model.eval())


def test_windows_are_spread_over_the_text():
    found = spread(Text(), 3, 10)
    assert found.tolist() == [Text().read(start, start + 10).tolist() for start in (0, 2495, 4990)]


def test_essential_knee_measures_what_it_says(source):
    options = {"windows": 4, "draws": 2, "step": 0.1}
    found = essential_knee.essential_knee(0, source, **options)
    assert found == essential_knee.essential_knee(0, source, **options)
    other = essential_knee.essential_knee(1, source, **options).numbers
    numbers = found.numbers
    assert numbers["rise, global"] != other["rise, global"]
    assert len(set(numbers["held-out rise of random masks there"])) == 2 or numbers["knee"] == 0
    assert numbers["held-out loss"] == round(text_loss(source.model(), spread(Text(), 4, 128)), 4)
    rises = dict(zip(numbers["sparsities"], numbers["rise, global"], strict=True))
    assert all(rise <= 0.02 for sparsity, rise in rises.items() if sparsity <= numbers["knee"])
    assert max(rises.values()) > 0.02
    json.dumps(dict(numbers))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ((0.45, 0.02, 0.3, 0.8), True),
        ((0.45, -0.01, 0.3, 0.8), True),
        ((0.25, 0.02, 0.3, 0.8), False),  # falls too early
        ((0.95, 0.02, 0.3, 0.8), False),  # never
        ((0.45, 0.05, 0.3, 0.8), False),  # flat on the calibration text only
        ((0.45, 0.02, 0.1, 0.8), False),  # no knee
        ((0.45, 0.02, 0.3, 0.1), False),  # random masks are nearly as good
    ],
)
def test_judgement_of_the_knee(measured, expected):
    assert essential_knee.holds(*measured) is expected


def test_a_curve_that_ends_early_ends_a_nat_higher():
    curve = {"sparsities": [0.0, 0.1, 0.2], "losses": [1.0, 1.1, 2.5]}
    assert essential_knee._rise_at(curve, 0.15) == pytest.approx(0.1)
    assert essential_knee._rise_at(curve, 0.5) == float("inf")
    assert essential_knee._rise_at({**curve, "losses": [1.0, 1.1, 1.2]}, 0.5) == pytest.approx(0.2)


def test_dropped_halves_measures_what_it_says(source):
    found = dropped_halves.dropped_halves(0, source, windows=4, counts=(1, 2))
    assert found == dropped_halves.dropped_halves(0, source, windows=4, counts=(1, 2))
    numbers = found.numbers
    held = spread(Text(), 4, 128)
    model = source.model()
    place = int(np.argmax(numbers["similarity mlp"]))
    assert numbers["dropped, mlp 1"] == f"mlp{place}"
    model.model.layers[place].mlp.down_proj.weight.detach().zero_()
    rise = text_loss(model, held) - text_loss(source.model(), held)
    assert numbers["rise, mlp"][0] == pytest.approx(rise, abs=2e-4)
    assert numbers["rise a million parameters, mlp"][0] == pytest.approx(rise / (3 * 16 * 24) * 1e6, rel=0.01)
    singles = []
    for index in range(3):
        model = source.model()
        model.model.layers[index].mlp.down_proj.weight.detach().zero_()
        singles.append(text_loss(model, held) - text_loss(source.model(), held))
    assert numbers["rise of a random choice, mlp"][0] == pytest.approx(np.mean(singles), abs=2e-4)
    assert numbers["rise of the best choice, mlp 1"] == pytest.approx(min(singles), abs=2e-4)
    assert numbers["rise of a random choice without the first, mlp 1"] == pytest.approx(np.mean(singles[1:]), abs=2e-4)
    json.dumps(dict(numbers))


@pytest.mark.parametrize(
    ("attention", "mlp", "random", "holds"),
    [
        ([0.1, 0.11, 0.09], [0.5, 0.51, 0.49], 0.6, True),
        ([0.5, 0.51, 0.49], [0.1, 0.11, 0.09], 0.6, False),  # MLPs are cheaper
        ([0.1, 0.11, 0.09], [0.5, 0.51, 0.49], 0.3, False),  # similarity of MLPs is no better than chance
        ([0.1, 0.9, 0.2], [0.3, 0.4, 0.5], 0.9, None),
    ],
)
def test_judgement_of_dropped_halves(attention, mlp, random, holds):
    chosen = {"attention": [attention], "mlp": [mlp]}
    sizes = {"attention": [100], "mlp": [200]}
    found = dropped_halves._judged(chosen, {"attention": [random], "mlp": [random]}, sizes, (1,), {})
    assert found.holds is holds
