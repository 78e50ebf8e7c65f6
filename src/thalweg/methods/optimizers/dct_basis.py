"""One orthogonal basis for all layers of a width, and the columns of it that fit a gradient best.

    C[i, j] = sqrt(2 / n) cos(i (2 j + 1) pi / (2 n)),  row 0 divided by sqrt(2)          C C^T = I

The rows of C are the vectors of the DCT-II: Q = C^T. For G [m, n]

    S = G Q                         [m, n], the DCT of every row
    score_j = |S_j|_1 or |S_j|_2    of column j
    the subspace: the r columns of Q with the largest scores

With the 2-norm no r columns of Q leave less of G outside: |G - G Q_r Q_r^T|^2 is the sum of |S_j|^2 over the others,
and at most (1 - r/n) |G|^2. S comes from one matrix product, or from an FFT (Makhoul's even-odd permutation), which
costs m n log n instead of m n^2.

The basis is made once a width, in float64, and shared by all layers, optimizers and methods of a process; a layer keeps
r integers. `random` instead of `dct` is an orthogonal matrix from a fixed seed: what the DCT has to beat.

Source: "FFT-based Dynamic Subspace Selection for Low-Rank Adaptive Optimization of Large Language Models" (2025,
arXiv:2505.17967).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from thalweg.methods.optimizers.low_rank import Stack


@lru_cache(maxsize=32)
def basis_rows(kind: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """C [n, n], whose rows are the basis ("dct" or "random"); shared, not to be changed."""
    if kind == "random":
        generator = torch.Generator().manual_seed(size)
        numbers = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(numbers).Q.to(device=device, dtype=dtype)
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = 2.0 * torch.arange(size, dtype=torch.float64) + 1.0
    rows = math.sqrt(2.0 / size) * torch.cos(frequency * position * (math.pi / (2.0 * size)))
    rows[0] *= math.sqrt(0.5)
    return rows.to(device=device, dtype=dtype)


def dct_by_fft(tensor: Tensor) -> Tensor:
    """The orthonormal DCT-II of the last dimension: `tensor @ C.T` to rounding."""
    size = tensor.shape[-1]
    # Even positions ascending, then the odd ones descending, make the cosines of a DCT those of one FFT.
    permuted = torch.cat([tensor[..., ::2], tensor[..., 1::2].flip(-1)], dim=-1)
    angles = torch.arange(size, dtype=torch.float64) * (-math.pi / (2.0 * size))
    scale = torch.full((size,), math.sqrt(2.0 / size), dtype=torch.float64)
    scale[0] *= math.sqrt(0.5)
    turn = torch.polar(scale, angles).to(device=tensor.device, dtype=tensor.dtype.to_complex())
    return (torch.fft.fft(permuted) * turn).real


def coefficients(gradients: Tensor, kind: str, transform: str) -> Tensor:
    """S [b, m, n] from G [b, m, n], by "matmul" or, for the DCT, by "fft"."""
    if transform == "fft" and kind == "dct":
        return dct_by_fft(gradients)
    return gradients @ basis_rows(kind, gradients.shape[-1], gradients.dtype, gradients.device).mT


def aligned(coefficients: Tensor, rank: int, ell_norm: int) -> Tensor:
    """Ascending indices [b, r] of the columns of S [b, m, n] with the largest norms."""
    scores = torch.linalg.vector_norm(coefficients, ord=ell_norm, dim=-2)
    return scores.topk(rank).indices.sort().values


def columns(coefficients: Tensor, indices: Tensor) -> Tensor:
    """S[:, indices], [b, m, r]."""
    return coefficients.gather(-1, indices[:, None, :].expand(-1, coefficients.shape[-2], -1))


def carried(previous: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    """Q_previous^T Q_now [b, r, r]: of columns of one orthogonal matrix, so 1 where an index was kept, else 0."""
    return (previous[:, :, None] == indices[:, None, :]).to(dtype)


def aligned_subspace(stack: Stack, gradients: Tensor, gap: int) -> Tensor:
    """P [b, n, r] like `singular_subspace`, with columns of the DCT matrix (1-norm); a matrix keeps r indices."""
    indices = stack.copies("indices", (stack.rank,), torch.int64)
    if stack.refreshes(gap):
        indices = aligned(coefficients(gradients, "dct", "matmul"), stack.rank, ell_norm=1)
        stack.keep("indices", indices)
    return basis_rows("dct", stack.columns, gradients.dtype, gradients.device)[indices].mT
