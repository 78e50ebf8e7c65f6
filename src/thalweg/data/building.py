"""`prepare`: find the token store of a corpus, or build it.

A store lies in `<cache>/stores/<key>/`, where the key is a hash of all that decides its bytes: the content of the
corpus, the tokenizer and the options. So an unchanged corpus finds its store, and a changed one cannot find a stale
one.

A build works in a folder `.building-<key>-...` beside, writes the manifest last, syncs, and renames. Killed at any
moment it leaves a folder that is not a store; the next build that can take the lock of that key (so no living
build holds it) removes it. The lock is released by the system when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.cache import cache_folder
from thalweg.data import store as stores
from thalweg.data.corpora import DocumentSource, open_corpus
from thalweg.data.encoder import EncoderPool
from thalweg.data.locking import locked
from thalweg.data.progress import Bar
from thalweg.data.recall import content_hash, store_key
from thalweg.data.remote import PREFIX, open_remote
from thalweg.data.splitting import SAMPLE_BYTES, document_hash, survey
from thalweg.data.store import TokenStore
from thalweg.data.tally import Tally
from thalweg.data.tokenization import (
    TokenizerChoice,
    choose_tokenizer,
    load_tokenizer,
    required_vocabulary,
    tokenizer_hash,
    train_bpe,
)
from thalweg.data.writer import SHARD_TOKENS, SplitWriter, sync_folder
from thalweg.errors import DataError, disk_is_full

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger("thalweg.data")

# Below this a second process costs more to start than it saves.
_SMALL = 4 << 20
_BUILDING = ".building-"


@dataclass(frozen=True)
class _Job:
    corpus: DocumentSource
    content: str
    choice: TokenizerChoice
    held_out: float
    workers: int
    key: str
    shard_tokens: int


def prepare(
    corpus: str | Path,
    *,
    tokenizer: str | Path = "bpe:4096",
    field: str = "text",
    held_out: float = 0.05,
    cache: Path | None = None,
    progress: bool = True,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenStore:
    """The token store of a corpus; built if there is none for exactly these inputs.

    Args:
        corpus: "stdlib", a file, a folder or "hf:owner/name".
        tokenizer: "bpe:<entries>" to train one on the corpus, or a Hugging Face tokenizer folder.
        field: the key or column with the text, for .jsonl, .parquet and hf.
        held_out: share of the documents to hold out, above 0 and below 1.
        cache: see cache_folder(). progress: show a bar on stderr.
        workers: processes to tokenize with; default all cores. The result does not depend on it.
        shard_tokens: the most tokens in a file of the store.

    Raises:
        DataError: anything about the corpus, the tokenizer or the cache that the user can put right.
    """
    if not 0.0 < held_out < 1.0:
        raise DataError("The held-out share must lie between 0 and 1", where=f"held_out={held_out}", fix="Use 0.05.")
    if workers is not None and workers < 1:
        raise DataError("There must be at least one worker", where=f"workers={workers}")
    choice = choose_tokenizer(tokenizer)
    root = cache_folder(cache)
    spelled = str(corpus)
    source: DocumentSource
    source = open_remote(spelled, field, root) if spelled.startswith(PREFIX) else open_corpus(corpus, field)
    with Bar(progress, source.size) as bar, _disk_errors(root):
        for folder in (root / "stores", root / "locks", root / "index"):
            folder.mkdir(parents=True, exist_ok=True)
        content = content_hash(source, root / "index", bar)
        key = store_key(content, choice.identity, field, held_out, shard_tokens)
        job = _Job(source, content, choice, held_out, _workers(workers, source.size), key, shard_tokens)
        return _find(root, key) or _build_once(root, job, bar)


def _workers(wanted: int | None, size: int | None) -> int:
    if wanted is not None:
        return wanted
    if size is not None and size < _SMALL:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            "The disk is full" if disk_is_full(error) else f"The cache cannot be written: {error.strerror or error}",
            where=str(error.filename or root),
            fix="Free some space, or put the cache elsewhere with $THALWEG_CACHE.",
        ) from error


def _find(root: Path, key: str) -> TokenStore | None:
    folder = root / "stores" / key
    if not folder.exists():
        return None
    try:
        return TokenStore(folder)
    except DataError as error:
        logger.warning("%s; building it again", error.what)
        return None


def _build_once(root: Path, job: _Job, bar: Bar) -> TokenStore:
    """Build under the key's lock, unless another process did so while we waited."""
    target = root / "stores" / job.key
    with locked(root / "locks" / job.key):
        finished = _find(root, job.key)
        if finished is not None:
            return finished
        _remove_leftovers(root, job.key)
        folder = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{job.key}-", dir=root / "stores"))
        try:
            _build(folder, job, bar)
            if target.exists():
                # Damaged. Moved aside first, since a folder is replaced only by an empty one.
                os.rename(target, f"{folder}-damaged")
            os.rename(folder, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(f"{folder}-damaged", ignore_errors=True)
        return TokenStore(target)


def _remove_leftovers(root: Path, own_key: str) -> None:
    """Remove what dead builds left: folders whose key's lock nobody holds."""
    for folder in (root / "stores").glob(f"{_BUILDING}*"):
        key = folder.name.removeprefix(_BUILDING).split("-")[0]
        if key == own_key:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with locked(root / "locks" / key, wait=False) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def _build(folder: Path, job: _Job, bar: Bar) -> None:
    corpus, tally = job.corpus, Tally(dict(job.corpus.oddities.counts), dict(job.corpus.oddities.first))
    before = corpus.fingerprint()
    bar.start("reading")
    found = survey(
        corpus.documents(tally, bar.advance), job.held_out, corpus.name, SAMPLE_BYTES if job.choice.vocabulary else 0
    )
    if found.forced:
        tally.add("forced_split", corpus.name)
    tokenizer = _tokenizer(job.choice, found.sample, bar)
    found.sample.clear()
    tokenizer.save_pretrained(folder / "tokenizer")
    bar.start("tokenizing")
    manifest = {
        "format": stores.FORMAT,
        "corpus": corpus.name,
        "content": job.content,
        "tokenizer": job.choice.identity,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "options": {"field": corpus.field, "held_out": job.held_out, "shard_tokens": job.shard_tokens},
        "vocab_size": required_vocabulary(tokenizer),
        "separator": tokenizer.eos_token_id,
        **_write_tokens(folder, job, tokenizer, found.threshold, bar),
        "warnings": tally.warnings(),
    }
    _check_unchanged(job, before)
    _write_manifest(folder, manifest)
    for warning in manifest["warnings"]:
        logger.warning("%s: %s", corpus.name, warning["message"])


def _tokenizer(choice: TokenizerChoice, sample: list[bytes], bar: Bar) -> PreTrainedTokenizerFast:
    if choice.vocabulary is not None:
        bar.start("training the tokenizer", endless=True)
        return train_bpe(sample, choice.vocabulary)
    assert choice.folder is not None
    return load_tokenizer(choice.folder)


def _write_tokens(
    folder: Path, job: _Job, tokenizer: PreTrainedTokenizerFast, threshold: int, bar: Bar
) -> dict[str, Any]:
    wide = required_vocabulary(tokenizer) > 1 << 16
    item = 4 if wide else 2
    backend = tokenizer.backend_tokenizer.to_str()
    pool = EncoderPool(backend, int(tokenizer.eos_token_id), wide, job.workers)
    with contextlib.ExitStack() as stack:
        writers = [SplitWriter(folder, name, item, job.shard_tokens) for name in stores.SPLITS]
        for writer in writers:
            stack.callback(writer.close)
        encoded = stack.enter_context(contextlib.closing(pool.encode(job.corpus.documents(None, bar.advance))))
        for documents, counts, ids in encoded:
            held = np.array([document_hash(document) < threshold for document in documents])
            sizes = np.array([len(document) for document in documents], np.int64)
            lengths = np.array(counts, np.int64)
            spread = np.repeat(held, lengths)
            array = np.frombuffer(ids, "<u4" if wide else "<u2")
            for writer, mine, tokens in zip(writers, (~held, held), (~spread, spread), strict=True):
                if mine.any():
                    writer.add(memoryview(array[tokens]).cast("B"), lengths[mine], sizes[mine])
        splits = {name: writer.finish() for name, writer in zip(stores.SPLITS, writers, strict=True)}
    return {"type": "<u4" if wide else "<u2", "splits": splits}


def _check_unchanged(job: _Job, before: str) -> None:
    corpus = job.corpus
    now = open_corpus(corpus.name, corpus.field) if not corpus.name.startswith(PREFIX) else corpus
    if now.fingerprint() != before:
        raise DataError(
            "The corpus changed while it was read", where=corpus.name, fix="Run again when nothing writes to it."
        )


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Last, and only after everything it vouches for is on the disk."""
    for path in (folder / "tokenizer").iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder / "tokenizer")
    with open(folder / stores.MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
