"""What a user can get wrong, said so that the user can put it right.

Every error says *what* is wrong, *where* it was found and what to do (*fix*). The command line prints the three
in two lines and exits with status 2; a traceback is for our own mistakes only.
"""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake in the input, not in Thalweg.

    Args:
        what: the problem in one sentence.
        where: the file, key or object it was found in.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        located = f"{what} ({where})" if where else what
        super().__init__(f"{located}\n{fix}" if fix else located)


class RecipeError(UserError):
    """A recipe or an arm that cannot be understood."""


class BudgetError(UserError):
    """A budget that cannot be read or cannot be met."""


class DataError(UserError):
    """A corpus, a tokenizer or a token store that cannot be used."""


class ModelError(UserError):
    """A model that cannot be built, read or trained."""


class RunError(UserError):
    """A run folder or a checkpoint that cannot be used."""


class TrainingError(UserError):
    """Training that cannot go on."""


class ArenaError(UserError):
    """A comparison or a claim that cannot be made."""


class MachineError(UserError):
    """Something this machine does not have."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error means that there is no room left on a disk, or in a quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # Libraries written in Rust (safetensors, tokenizers) report the operating system's error as text only.
    return any(f"os error {code}" in str(error) for code in _FULL)
