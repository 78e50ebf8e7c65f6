"""Data read more than once: what a repeated token is still worth, and how much more decay repetition wants.

*Worth.* Reading U unique tokens for R more passes is worth as much as

    D' = U + U R* (1 - exp(-R / R*))        R* = 15.387756

tokens read once: up to about four passes a repeated token is nearly as good as a new one, around sixteen it
is worth about 1 / e of one, and no number of passes is worth more than U (1 + R*). D' takes the place of D in
a loss law. Parameters beyond what U tokens can use are discounted alike with R* = 5.309743. Source: Scaling
Data-Constrained Language Models (Muennighoff et al. 2023, arXiv:2305.16264), both constants as in its
appendix and its released fits; fitted on C4 with models of 7M to 9B parameters.

*Weight decay.* Pre-training under infinite compute (Kim et al. 2025, arXiv:2509.14786) tunes weight decay at
200M unique tokens: 0.8 at 150M parameters and 16 epochs, 1.6 at 300M and 16, 3.2 at 600M and 8, 3.2 at 1.4B
and 8, against the usual 0.1. weight_decay_factor() is *our* reading of that table and no law of theirs; see
there.
"""

from __future__ import annotations

import math

from thalweg.errors import UserError

DATA_R_STAR = 15.387756
PARAMETER_R_STAR = 5.309743

# The table's 0.8 and 1.6, over the usual 0.1, at 0.75 and 1.5 parameters a unique token; and its largest,
# 3.2.
_FACTOR_PER_RATIO = 8.0 / 0.75
_LARGEST_FACTOR = 32.0
# The table's runs had 8 or 16 epochs; from one epoch to eight we go in equal factors.
_FULL_DECAY_EPOCHS = 8.0


def effective_tokens(seen: float, unique: float, r_star: float = DATA_R_STAR) -> float:
    """Tokens read once that are worth as much as `seen` tokens drawn from `unique` ones.

    Args:
        seen: tokens trained on, D; the number of repetitions is R = D / U - 1, none up to one pass.
        unique: distinct tokens there are, U.
        r_star: repetitions at which a repeated token is worth 1 / e of a new one.

    Raises:
        UserError: unique or r_star is not positive, or seen is negative.
    """
    return _discounted(seen, unique, r_star)


def effective_parameters(parameters: float, useful: float, r_star: float = PARAMETER_R_STAR) -> float:
    """Parameters that are worth as much as `parameters` where the unique data can use `useful` of them.

    Args:
        parameters: of the model, N.
        useful: compute-optimal parameters for the unique tokens, U_N.
        r_star: excess, in multiples of `useful`, at which a further parameter is worth 1 / e.
    """
    return _discounted(parameters, useful, r_star)


def _discounted(spent: float, useful: float, r_star: float) -> float:
    if not (useful > 0 and spent >= 0 and r_star > 0):
        raise UserError(f"Amounts must be positive, not {useful} of {spent} with a constant of {r_star}.")
    if spent <= useful:
        return spent
    repetitions = spent / useful - 1
    return useful * (1 - r_star * math.expm1(-repetitions / r_star))


def weight_decay_factor(epochs: float, parameters_per_token: float = 0.75) -> float:
    """Times the usual (AdamW, decoupled) weight decay when data is repeated. Our rule from four points.

    Up to one epoch it is 1. At eight epochs and more it is 10.7 * parameters_per_token, between 1 and 32 (on
    the usual 0.1 this gives the table's 0.8, 1.6, 3.2, 3.2). Between, the exponent grows with log2(epochs).
    It rises with epochs and parameters and falls with unique tokens, as the paper's trends do. The table was
    made at peak rates of 1e-3 to 3e-3 and thousands of steps; what the rule is worth in shorter runs has not
    been measured.

    Args:
        epochs: passes over the data, may be fractional.
        parameters_per_token: parameters over unique training tokens; the default is the table's smallest.

    Raises:
        UserError: an argument is not positive.
    """
    if not min(epochs, parameters_per_token) > 0:
        raise UserError(f"Epochs and parameters a token must be positive: {epochs}, {parameters_per_token}.")
    full = max(1.0, min(_LARGEST_FACTOR, _FACTOR_PER_RATIO * parameters_per_token))
    share = min(max(math.log(epochs) / math.log(_FULL_DECAY_EPOCHS), 0.0), 1.0)
    return full**share
