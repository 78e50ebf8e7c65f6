"""The DCT and its columns, against scipy, the numbers of the sheet, and the best subset by brute force."""

from __future__ import annotations

import itertools

import pytest
import scipy.fft
import torch

from thalweg.methods.optimizers.dct_basis import aligned, basis_rows, carried, coefficients, columns, dct_by_fft

CPU = torch.device("cpu")


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(kind, size, dtype=torch.float64):
    return basis_rows(kind, size, dtype, CPU)


@pytest.mark.parametrize("kind", ["dct", "random"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 250])
def test_bases_are_orthogonal_and_shared(kind, size):
    basis = rows(kind, size)
    torch.testing.assert_close(basis @ basis.T, torch.eye(size).double(), atol=1e-12, rtol=0)
    assert rows(kind, size) is basis
    assert torch.equal(rows(kind, size, torch.float32), basis.float())


def test_numbers_of_the_sheet():
    half, third = 0.5**0.5, 3.0**-0.5
    torch.testing.assert_close(rows("dct", 2), torch.tensor([[half, half], [half, -half]]).double(), atol=1e-7, rtol=0)
    expected = torch.tensor([[third] * 3, [half, 0.0, -half], [0.40825, -0.81650, 0.40825]]).double()
    torch.testing.assert_close(rows("dct", 3), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 33, 96])
def test_three_ways_to_a_dct_agree(size):
    x = random(2, 4, size)
    theirs = torch.from_numpy(scipy.fft.dct(x.numpy(), type=2, norm="ortho", axis=-1))
    torch.testing.assert_close(dct_by_fft(x), theirs, atol=1e-13, rtol=0)
    torch.testing.assert_close(coefficients(x, "dct", "matmul"), theirs, atol=1e-13, rtol=0)
    torch.testing.assert_close(coefficients(x, "dct", "fft"), theirs, atol=1e-13, rtol=0)
    torch.testing.assert_close(dct_by_fft(x.float()), theirs.float(), atol=1e-5, rtol=0)


def test_worked_example_of_the_sheet():
    gradient = torch.tensor([[[3.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    found = coefficients(gradient, "dct", "matmul")
    expected = torch.tensor([[[2.828427, 1.414214], [1.414214, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    indices = aligned(found, 1, ell_norm=1)
    assert indices.tolist() == [[0]]
    back = columns(found, indices) @ rows("dct", 2)[indices[0]]
    torch.testing.assert_close(back[0], torch.tensor([[2.0, 2.0], [1.0, 1.0]]).double(), atol=1e-12, rtol=0)
    assert (gradient - back).square().sum().item() == pytest.approx(2.0, abs=1e-12)
    assert (torch.linalg.svdvals(gradient)[0, 1] ** 2).item() == pytest.approx(0.343146, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_two_norm_chooses_the_best_subset(seed, rank):
    gradient, basis = random(1, 7, 5, seed=seed), rows("dct", 5)
    found = coefficients(gradient, "dct", "matmul")
    indices = aligned(found, rank, ell_norm=2)

    def error(subset):
        chosen = basis[list(subset)]
        return (gradient[0] - gradient[0] @ chosen.T @ chosen).square().sum().item()

    best = min(itertools.combinations(range(5), rank), key=error)
    assert indices[0].tolist() == list(best)
    assert error(best) <= (1 - rank / 5) * gradient.square().sum().item()
    left = [index for index in range(5) if index not in best]
    assert error(best) == pytest.approx(found[0][:, left].square().sum().item(), rel=1e-10)


def test_one_and_two_norms_may_disagree():
    found = torch.tensor([[[3.0, 1.5], [0.0, 1.6], [0.0, 0.0]]])
    assert aligned(found, 1, ell_norm=1).item() == 1
    assert aligned(found, 1, ell_norm=2).item() == 0


def test_moments_go_with_their_index():
    found = carried(torch.tensor([[0, 2]]), torch.tensor([[2, 3]]), torch.float64)
    assert found.tolist() == [[[0.0, 0.0], [1.0, 0.0]]]
    previous, now = torch.tensor([[1, 4, 6]]), torch.tensor([[0, 1, 6]])
    basis = rows("dct", 9)
    product = basis[previous[0]] @ basis[now[0]].T
    torch.testing.assert_close(carried(previous, now, torch.float64)[0], product, atol=1e-12, rtol=0)
