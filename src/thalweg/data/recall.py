"""Knowing a corpus again without reading it: fingerprint -> content hash, and the key of a store.

Like git's index. `<cache>/index/<place>.json` says which content hash a corpus had when its files had a certain
fingerprint (names, sizes, times). A corpus that was not at rest when it was hashed is not remembered, and
is read again next time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from thalweg.data.corpora import DocumentSource
from thalweg.data.progress import Bar
from thalweg.data.store import FORMAT


def content_hash(corpus: DocumentSource, index: Path, bar: Bar) -> str:
    """The content hash of a corpus, from the index when its fingerprint is the remembered one."""
    place = hashlib.blake2b(os.fsencode(corpus.identity), digest_size=16).hexdigest()
    entry = index / f"{place}.json"
    fingerprint = corpus.fingerprint()
    try:
        remembered = json.loads(entry.read_text("utf-8"))
        if remembered["fingerprint"] == fingerprint:
            return str(remembered["content"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    trusted = corpus.at_rest()
    bar.start("hashing")
    content = corpus.content(bar.advance)
    if trusted:
        write_json(entry, {"fingerprint": fingerprint, "content": content})
    return content


def store_key(content: str, tokenizer: str, field: str, held_out: float, shard_tokens: int) -> str:
    """The name of the store: a hash of all that decides its bytes."""
    described = json.dumps([FORMAT, content, tokenizer, field, held_out, shard_tokens])
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
