"""Models on disk: any Hugging Face causal language model in, a plain Hugging Face folder out.

What is read is safetensors and JSON only. A folder whose weights are a pickle (pytorch_model.bin) is refused,
and code that comes with a model is never run. Weights that compressed-tensors has packed become ordinary ones.
What is written loads with AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained, without a
network, and gives the same logits bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.errors import ModelError
from thalweg.models.decompression import check_installed, decompressed, is_packed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load(
    folder: str | Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Reads a causal language model and, where there is one, its tokenizer.

    Args:
        folder: a folder with config.json and *.safetensors.
        dtype: of the weights; None means float32, since training needs full-precision masters whatever was
            stored.

    Returns:
        (model on the CPU, in evaluation mode, use_cache off as training wants it; tokenizer, or None where
        the folder has none).

    Raises:
        ModelError: the folder is missing, is pickled, needs own code, is damaged, or does not fit its config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    _check_files(folder)
    try:
        with no_progress_bars(is_packed(folder)), torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype or torch.float32,
                output_loading_info=True,
            )
        model, info = loaded
    except Exception as error:  # transformers, safetensors and json raise a dozen kinds for a damaged folder
        raise ModelError(
            f"The model cannot be loaded: {_first_line(error)}",
            where=str(folder),
            fix="The folder must be a causal language model that transformers knows, saved whole.",
        ) from error
    wrong = sorted(map(str, info["missing_keys"])) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{len(wrong)} weights are missing or do not have the shape that config.json says: {wrong[0]}, ...",
            where=str(folder),
            fix="Save the model again; weights and config.json must belong together.",
        )
    decompressed(model)
    model.config.use_cache = False
    return model, _load_tokenizer(folder)


def _check_files(folder: Path) -> None:
    """What transformers would accept and we do not, or would explain badly."""
    where = str(folder)
    if not folder.is_dir():
        raise ModelError("There is no such model folder.", where=where, fix="Check the path.")
    if (folder / "adapter_config.json").is_file():
        raise ModelError("The folder holds an adapter.", where=where, fix="Merge it into its model first.")
    if not (folder / "config.json").is_file():
        raise ModelError("There is no config.json.", where=where, fix="Point to a Hugging Face model folder.")
    if is_packed(folder):
        check_installed(folder)
    _check_shards(folder)
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"The weights are a pickle ({pickles[0]}), which can run code when it is read.",
            where=where,
            fix="Convert it to safetensors: load it where you trust it, then model.save_pretrained(folder).",
        )
    raise ModelError("There is no *.safetensors file.", where=where, fix="Save the model with save_pretrained.")


def _check_shards(folder: Path) -> None:
    """The index of a sharded model may name files of its own folder only."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError("The index of shards is damaged.", where=str(index), fix="Save the model again.") from error
    for name in sorted(map(str, names)):
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"The shard {name!r} is not in the folder.", where=str(index), fix="Copy it there.")


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above: many kinds for one mistake
        raise ModelError(
            f"The tokenizer cannot be loaded: {_first_line(error)}",
            where=str(folder),
            fix="Save the tokenizer again.",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes config.json, generation_config.json, model.safetensors and the tokenizer's files.

    Ids of special tokens that the model does not know yet are taken from the tokenizer, and the saved configs
    ask for the key-value cache, which training switches off; the model in memory is left as it is.

    Args:
        model: any transformers causal language model.
        tokenizer: None writes the model only.
        folder: made if missing; files of the same names are replaced.
        state_dict: weights to write in place of the model's own (gathered from ranks, or averaged).
        state_dict: weights to write instead of the model's own (a sharded model's, gathered).

    Raises:
        ModelError: the folder cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"The folder cannot be made: {error.strerror}.", where=str(folder)) from error
    with no_progress_bars(), _as_saved(model, tokenizer):
        model.save_pretrained(folder, state_dict=state_dict)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def _as_saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[None]:
    """Lends the model's configs the values that the saved ones should have."""
    # No padding token: in the model's config it would freeze that row of the embedding in later training.
    values: dict[str, Any] = {"use_cache": True}
    for name in ("bos_token_id", "eos_token_id"):
        known = getattr(tokenizer, name, None)
        if getattr(model.config, name, None) is None and known is not None:
            values[name] = known
    holders: list[Any] = [model.config]
    if getattr(model, "generation_config", None) is not None:
        holders.append(model.generation_config)
    before = [{name: getattr(holder, name, None) for name in values} for holder in holders]
    try:
        for holder in holders:
            for name, value in values.items():
                setattr(holder, name, value)
        yield
    finally:
        for holder, old in zip(holders, before, strict=True):
            for name, value in old.items():
                setattr(holder, name, value)


@contextmanager
def no_progress_bars(packed: bool = False) -> Iterator[None]:
    """A bar for a write of milliseconds only tears the live line of a run.

    packed: compressed-tensors takes part, whose bars can only be kept from the terminal.
    """
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if packed:
        logging.set_verbosity_error()  # a report of weights that are missing, since they have other names
    try:
        with redirect_stderr(StringIO()) if packed else nullcontext():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
