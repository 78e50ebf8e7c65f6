"""Tokenizers: byte-level BPE trained on the corpus, or a Hugging Face tokenizer from a folder.

Byte-level BPE starts from the 256 bytes, so it can write any text and decoding gives back exactly what was encoded.
(Sennrich et al. 2016 for BPE; the byte alphabet and the word pattern are GPT-2's, Radford et al. 2019.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thalweg.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SEPARATOR = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
LARGEST_VOCABULARY = 1 << 20
_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.model")


@dataclass(frozen=True)
class TokenizerChoice:
    """What the user asked for: `vocabulary` entries of BPE to train, or a `folder` to load.

    `identity` changes when the tokenizer would: it goes into the key of the store.
    """

    identity: str
    vocabulary: int | None = None
    folder: Path | None = None


def choose_tokenizer(tokenizer: str | Path) -> TokenizerChoice:
    """Read "bpe:4096" or a folder's path. Raises DataError when it is neither."""
    spelled = str(tokenizer)
    if spelled == "bpe" or spelled.startswith("bpe:"):
        match = re.fullmatch(r"bpe:(\d{1,9})", spelled)
        size = int(match[1]) if match else 0
        if not SMALLEST_VOCABULARY <= size <= LARGEST_VOCABULARY:
            raise DataError(
                f"A BPE vocabulary has {SMALLEST_VOCABULARY} (256 bytes and the separator) to "
                f"{LARGEST_VOCABULARY} entries",
                where=spelled,
                fix='Write for example "bpe:4096".',
            )
        return TokenizerChoice(f"bpe:{size}", vocabulary=size)
    folder = Path(tokenizer).expanduser()
    if not folder.is_dir():
        raise DataError(
            "There is no such tokenizer folder",
            where=spelled,
            fix='Give "bpe:4096" or a folder written by save_pretrained.',
        )
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}):
        try:
            digest.update(path.name.encode() + b"\0" + hashlib.blake2b(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"The tokenizer cannot be read: {error.strerror}", where=str(path)) from error
    return TokenizerChoice(f"folder:{digest.hexdigest()}", folder=folder)


def train_bpe(documents: Iterable[bytes], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with at most `vocabulary` entries; entry 0 is the separator, which also ends a text.

    The same documents in the same order give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((document.decode() for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer folder; nothing in it is executed. Raises DataError when it cannot be used."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises nearly everything for a bad folder
        raise DataError(
            f"The tokenizer cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=str(folder),
            fix="The folder needs a tokenizer.json, as save_pretrained writes it.",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            "The tokenizer has no fast (tokenizers) form",
            where=str(folder),
            fix="Convert it to a tokenizer.json with transformers' PreTrainedTokenizerFast.",
        )
    check_tokenizer(tokenizer, where=str(folder))
    return tokenizer


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int | None = None, where: str | None = None
) -> None:
    """Check that a tokenizer can close documents and fits a model.

    Args:
        vocab_size: entries in the model's embedding; None checks the separator only.

    Raises:
        DataError: no end-of-text token, or token ids of vocab_size and above.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has no end-of-text token to separate documents with",
            where=where,
            fix="Set eos_token in its tokenizer_config.json.",
        )
    needed = required_vocabulary(tokenizer)
    if vocab_size is not None and needed > vocab_size:
        raise DataError(
            f"The tokenizer has {needed} entries but the model has room for {vocab_size}",
            where=where,
            fix=f"Use a smaller tokenizer, or a model with vocab_size of at least {needed}.",
        )


def required_vocabulary(tokenizer: PreTrainedTokenizerFast) -> int:
    """The vocab_size that a model needs: one more than the largest token id (ids may have gaps)."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of everything that decides how text becomes ids."""
    described = f"{tokenizer.eos_token_id}\n{tokenizer.backend_tokenizer.to_str()}"
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
