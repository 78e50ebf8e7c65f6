"""What a user can get wrong, said so that the user can put it right.

Every error says *what* is wrong, *where* it was found and what to do (*fix*). The command line prints the three
in two lines and exits with status 2; a traceback is for our own mistakes only.
"""

from __future__ import annotations


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
