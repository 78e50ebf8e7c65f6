"""How a step is laid out: window length, windows a step, windows a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.data import WindowSampler
from thalweg.errors import MachineError, ModelError
from thalweg.planner import rules
from thalweg.planner.assumptions import ACTIVATION_BYTES, MICRO_BATCH_TOKENS
from thalweg.planner.rules import AS_SAID, Decision
from thalweg.planner.situation import Situation
from thalweg.planner.sizes import Size

LEAST_CONTEXT = 8


@dataclass(frozen=True)
class Layout:
    """The tokens of a step.

    Attributes:
        context: tokens a window. batch: windows a step over all ranks. Both with their reasons.
        micro: windows of one forward pass of a rank; divides the rank's windows.
        rank_tokens: tokens of a step a rank.
    """

    context: Decision
    batch: Decision
    micro: int
    rank_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of a step, all ranks together."""
        return self.context.value * self.batch.value

    @property
    def micro_tokens(self) -> int:
        return self.context.value * self.micro


def lay_out(situation: Situation, size: Size, tokens: float) -> Layout:
    """The layout for a size and so many tokens of training; what the recipe says is kept.

    Raises:
        DataError: the corpus is smaller than one batch.
        ModelError: the model cannot read windows as long as the recipe says.
    """
    training, ranks = situation.recipe.training, situation.ranks
    train = situation.store.train
    context = _context(situation, size, tokens)
    windows = max((train.token_count - 1) // context.value, 1)
    batch = (
        Decision(training.batch_size, AS_SAID)
        if training.batch_size
        else rules.batch_windows(tokens, context.value, windows, ranks)
    )
    _sample(situation, context.value, batch.value)
    rows, best = batch.value // ranks, MICRO_BATCH_TOKENS[situation.device.type]
    wanted = training.micro_batch or min(best, room_tokens(situation, size)) // context.value
    return Layout(context, batch, rules.largest_divisor(rows, wanted), rows * context.value)


def check_corpus(situation: Situation) -> None:
    """Raise DataError or MachineError where what the recipe says of context and batch makes no batch of this corpus."""
    data, training = situation.recipe.data, situation.recipe.training
    if training.batch_size and training.batch_size % situation.ranks:
        raise MachineError(
            f"a batch of {training.batch_size} windows cannot be divided over {situation.ranks} ranks",
            where="training.batch_size",
            fix="Choose a batch size that is a multiple of the number of ranks.",
        )
    _sample(situation, data.context or LEAST_CONTEXT, training.batch_size or situation.ranks)


def _sample(situation: Situation, context: int, batch: int) -> None:
    """The samplers know what is too small for them, and say so."""
    WindowSampler(situation.store.train, context, batch, seed=0, world_size=situation.ranks)
    WindowSampler(situation.store.held_out, context, 1, seed=0)


def _context(situation: Situation, size: Size, tokens: float) -> Decision:
    said, store = situation.recipe.data.context, situation.store
    longest = size.most_context
    if said is not None:
        if longest is not None and said > longest:
            raise ModelError(
                f"a window of {said} tokens is longer than the {longest} that the model can read",
                where="data.context",
                fix=f"Use at most {longest}.",
            )
        return Decision(said, AS_SAID)
    # A few windows at least, a whole batch of them where the recipe says how many, and one that is held out.
    shares = situation.recipe.training.batch_size or LEAST_CONTEXT
    most = min((store.train.token_count - 1) // shares, store.held_out.token_count - 1)
    most = min(most, room_tokens(situation, size), longest or most)
    return rules.context(tokens, max(most, LEAST_CONTEXT))


def room_tokens(situation: Situation, size: Size) -> int:
    """Tokens whose activations memory has room for."""
    free = situation.memory - size.bytes(0, situation.device.type, shards(situation))
    return max(int(free / (ACTIVATION_BYTES * size.layers * size.width)), 0)


def shards(situation: Situation) -> int:
    """Ranks that divide the weights, gradients and moments among them."""
    return situation.ranks if situation.recipe.training.shard else 1


def fits(situation: Situation, size: Size) -> bool:
    """Whether a size can be trained in the memory there is, one window at a time (or as many as the recipe says)."""
    data, training = situation.recipe.data, situation.recipe.training
    window = data.context or min(rules.constants()["context"]["smallest"], size.most_context or 1 << 30)
    return needed_bytes(situation, size, window * (training.micro_batch or 1)) <= situation.memory


def needed_bytes(situation: Situation, size: Size, tokens: int) -> float:
    """Memory of a rank for a size at so many tokens a forward pass."""
    return size.bytes(tokens, situation.device.type, shards(situation))
