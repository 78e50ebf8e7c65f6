"""Matrix nuclear norm against the numbers of its sheet, its bounds and its invariances."""

from __future__ import annotations

import math

import pytest
import torch

from thalweg.errors import RecipeError
from thalweg.methods.monitors import MatrixNuclearNorm
from thalweg.methods.monitors.matrix_nuclear_norm import (
    matrix_entropy,
    matrix_nuclear_norm,
    measure,
    normalised_states,
    nuclear_norm,
)

STATES = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)


def gaussian(tokens, features, seed=0):
    return torch.randn(tokens, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_oracle_of_the_sheet():
    expected = torch.tensor([[0.928477, -0.371391], [-0.707107, 0.707107], [-0.970143, 0.242536]], dtype=torch.float64)
    torch.testing.assert_close(normalised_states(STATES), expected, atol=1e-6, rtol=0)
    assert matrix_nuclear_norm(STATES).item() == pytest.approx(0.784121, abs=1e-6)
    assert nuclear_norm(STATES).item() == pytest.approx(0.693128, abs=1e-6)
    assert matrix_entropy(STATES).item() == pytest.approx(0.291956, abs=1e-6)


def test_rank_one_states():
    along_one_feature = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0]])
    along_all = along_one_feature[:, :1].expand(4, 3)
    assert matrix_nuclear_norm(along_one_feature).item() == pytest.approx(0.5)
    assert nuclear_norm(along_one_feature).item() == pytest.approx(0.5)
    assert nuclear_norm(along_all).item() == pytest.approx(0.5)
    assert matrix_nuclear_norm(along_all).item() == pytest.approx(math.sqrt(3) / 2)
    assert matrix_entropy(along_all).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("tokens", "features"), [(64, 16), (16, 64)])
def test_bounds_and_the_exact_norm(tokens, features):
    for seed in range(5):
        states = gaussian(tokens, features, seed)
        singular = torch.linalg.svdvals(normalised_states(states))
        assert nuclear_norm(states).item() == pytest.approx((singular.sum() / tokens).item(), abs=1e-6)
        score = matrix_nuclear_norm(states).item()
        assert score <= math.sqrt(min(tokens, features) / tokens) + 1e-12
        # An upper bound on the nuclear norm with all columns; not with columns left out.
        assert (score > nuclear_norm(states).item()) == (tokens >= features)
        share = singular.square() / tokens
        expected = -(share * share.log()).nansum().item() / math.log(features)
        assert matrix_entropy(states).item() == pytest.approx(expected, abs=1e-9)


def test_orthogonal_columns_make_it_exact():
    quarter = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert matrix_nuclear_norm(quarter).item() == pytest.approx(nuclear_norm(quarter).item())
    assert matrix_entropy(quarter).item() == pytest.approx(1.0)


@pytest.mark.parametrize("score", [matrix_nuclear_norm, matrix_entropy, nuclear_norm])
def test_invariances(score):
    states = gaussian(20, 7)
    value = score(states).item()
    shuffle = torch.Generator().manual_seed(1)
    same = [
        states * 37.0,
        states + gaussian(1, 7, seed=2),
        states[torch.randperm(20, generator=shuffle)],
        states[:, torch.randperm(7, generator=shuffle)],
    ]
    assert [score(other).item() for other in same] == pytest.approx([value] * 4, abs=1e-9)
    rotation, _ = torch.linalg.qr(gaussian(7, 7, seed=3))
    turned = score(states @ rotation).item()
    assert (abs(turned - value) < 1e-9) == (score is not matrix_nuclear_norm)


def test_a_batch_is_many_texts_and_one_without_direction_is_left_out():
    texts = torch.stack([gaussian(9, 4, seed) for seed in range(3)])
    texts[1] = texts[1, :1]
    for score in (matrix_nuclear_norm, matrix_entropy):
        values = score(texts)
        assert values[1].isnan()
        assert values[[0, 2]].tolist() == pytest.approx([score(texts[0]).item(), score(texts[2]).item()])


def test_measure_is_the_mean_over_texts_of_the_last_states(llama, batch_of):
    model, batch = llama(), batch_of(0, rows=4)
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[-1]
    expected = sum(matrix_nuclear_norm(text).item() for text in states[1::2]) / 2
    only_varied = {"input_ids": batch["input_ids"][1::2]}
    result = measure(model, only_varied)
    assert set(result) == {"mnn", "matrix_entropy"}
    assert result["mnn"] == pytest.approx(expected, abs=1e-6)


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="every"):
        MatrixNuclearNorm(every=0)
