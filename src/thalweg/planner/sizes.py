"""What may be trained: a rung of the ladder or somebody's own model, with what its size costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.data import TokenStore
from thalweg.errors import ModelError
from thalweg.models.folder import load
from thalweg.models.ladder import LADDER, Shape, flops_per_token, nearest
from thalweg.planner.assumptions import ACTIVATION_BYTES, PARAMETER_BYTES, PROCESS_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Size:
    """One model that a budget could be spent on.

    Attributes:
        source: what to build it from: a rung, or the loaded model itself.
        name: of the rung, or the folder.
        parameters: non-embedding. stored: all of them, which is what memory holds.
        vocab_size: rows of the output table.
        most_context: the longest window it can read, None for no limit.
    """

    source: Shape | PreTrainedModel
    name: str
    layers: int
    width: int
    heads: int
    feed_forward: int | None
    tie: bool | None
    parameters: int
    stored: int
    vocab_size: int
    most_context: int | None = None

    @property
    def own(self) -> bool:
        """Whether it is somebody's model, of which the law knows nothing."""
        return not isinstance(self.source, Shape)

    @property
    def law_parameters(self) -> int:
        """N of the law: parameters in matrix products, the output table included."""
        return self.parameters + self.vocab_size * self.width

    def flops(self, context: int) -> float:
        """Training FLOPs a token."""
        base, each = self._flops
        return base + each * context

    @cached_property
    def _flops(self) -> tuple[float, float]:
        # Linear in the context, and dear to count for a model: counted twice, at 0 and at 1.
        at = [flops_per_token(self.source, self.vocab_size if not self.own else None, context) for context in (0, 1)]
        return at[0], at[1] - at[0]

    def bytes(self, micro_tokens: int, device: str, shards: int = 1) -> float:
        """Memory of a rank that trains it: the process, weights with gradients and moments, activations.

        Args:
            micro_tokens: tokens of a micro-batch.
            shards: ranks that divide the weights, gradients and moments.
        """
        activations = ACTIVATION_BYTES * micro_tokens * self.layers * self.width
        return PROCESS_BYTES[device] + PARAMETER_BYTES * self.stored / shards + activations

    def described(self) -> dict[str, Any]:
        """The keys of a plan's `chosen` that say which model."""
        names = ("layers", "width", "heads", "feed_forward", "parameters", "tie")
        found = {"model": self.name} | {name: getattr(self, name) for name in names}
        return found | ({"model_folder": self.name} if self.own else {})


def rung(shape: Shape, vocab_size: int) -> Size:
    """A rung of the ladder with a vocabulary."""
    return Size(
        source=shape,
        name=shape.name,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        feed_forward=shape.feed_forward,
        tie=shape.tied,
        parameters=shape.parameters,
        stored=shape.parameters + vocab_size * shape.width * (1 if shape.tied else 2),
        vocab_size=vocab_size,
    )


def own_model(folder: Path, store: TokenStore) -> Size:
    """A Hugging Face model folder.

    Raises:
        ModelError: the folder holds no usable model, or its vocabulary is smaller than the tokenizer's.
    """
    model: Any = load(folder)[0]
    config = model.config
    if store.vocab_size > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {store.vocab_size} entries, the model knows {config.vocab_size}",
            where=str(folder),
            fix=f'Set data.tokenizer = "{folder}" to train with the model\'s own tokenizer.',
        )
    stored = sum(weight.numel() for weight in model.parameters())
    return Size(
        source=model,
        name=str(folder),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        feed_forward=getattr(config, "intermediate_size", None),
        tie=None,
        parameters=round(flops_per_token(model, context=0) / 6) - config.vocab_size * config.hidden_size,
        stored=stored,
        vocab_size=config.vocab_size,
        most_context=getattr(config, "max_position_embeddings", None),
    )


def sizes(model: str, store: TokenStore) -> list[Size]:
    """What a recipe's `model` leaves to choose from: the ladder for "auto", else the one it names."""
    if model == "auto":
        return [rung(shape, store.vocab_size) for shape in LADDER]
    if Path(model).is_dir() or "/" in model:
        return [own_model(Path(model), store)]
    return [rung(nearest(model), store.vocab_size)]
