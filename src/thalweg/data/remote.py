"""A data set on the Hugging Face hub as a corpus, streamed: `hf:owner/name` or `hf:owner/name:configuration`.

The revision (commit) of the data set stands for its content. Without a connection the last revision seen is used, so a
store that was built once is found again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thalweg.data.readers import check_text, from_string
from thalweg.data.recall import write_json
from thalweg.data.tally import Tally
from thalweg.errors import DataError

PREFIX = "hf:"
logger = logging.getLogger("thalweg.data")


@dataclasses.dataclass(frozen=True)
class RemoteCorpus:
    """A data set at one revision; the same interface as corpora.Corpus."""

    name: str
    repository: str
    configuration: str | None
    revision: str
    field: str
    oddities: Tally = dataclasses.field(default_factory=Tally)

    @property
    def identity(self) -> str:
        return self.name

    @property
    def size(self) -> int | None:
        """Unknown: the stream does not say."""
        return None

    def fingerprint(self) -> str:
        """The revision, which never changes its content."""
        return self.revision

    def at_rest(self, now: int | None = None) -> bool:
        return True

    def content(self, advance: Callable[[int], None] = lambda count: None) -> str:
        """Hash of repository, configuration and revision."""
        described = json.dumps([self.repository, self.configuration, self.revision])
        return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()

    def documents(
        self, tally: Tally | None = None, advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[bytes]:
        """Every non-empty document of the split "train" as UTF-8 bytes."""
        tally = tally if tally is not None else Tally()
        for row, record in enumerate(self._records()):
            where = f"{self.name}, row {row}"
            if self.field not in record:
                raise DataError(
                    f"The data set has no field {self.field!r}: its fields are {', '.join(sorted(record))}",
                    where=where,
                    fix="Name the field that holds the text (field=...).",
                )
            text = check_text(record[self.field], self.field, where)
            if text is None:
                tally.add("null_field", where)
                continue
            for document in from_string(text, where, tally):
                if document:
                    advance(len(document))
                    yield document

    def _records(self) -> Iterator[dict[str, Any]]:
        datasets = _library()
        try:
            yield from datasets.load_dataset(
                self.repository,
                self.configuration,
                split="train",
                revision=self.revision,
                streaming=True,
            )
        except GeneratorExit:
            raise
        except Exception as error:  # the library raises whatever its transports raise
            raise _unreachable(self.name, error) from error


def open_remote(corpus: str, field: str, cache: Path) -> RemoteCorpus:
    """Resolve "hf:owner/name[:configuration]" to its current revision.

    Raises:
        DataError: a wrong spelling, the `datasets` library missing, or no connection and no earlier use.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([\w.-]+))?", corpus)
    if match is None:
        raise DataError("This is not a data set on the hub", where=corpus, fix='Write "hf:owner/name".')
    _library()
    remembered = cache / "index" / f"hub-{hashlib.blake2b(corpus.encode(), digest_size=16).hexdigest()}.json"
    try:
        revision = _current_revision(match[1])
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_json(remembered, {"revision": revision})
    except Exception as error:  # no connection, no such data set, no permission: whatever the client raises
        try:
            revision = str(json.loads(remembered.read_text("utf-8"))["revision"])
        except (OSError, ValueError, KeyError, TypeError):
            raise _unreachable(corpus, error) from error
        logger.warning("%s cannot be reached; using revision %s, seen before", corpus, revision)
    return RemoteCorpus(corpus, match[1], match[2], revision, field)


def _current_revision(repository: str) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(repository, timeout=10).sha)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "Reading from the hub needs the library `datasets`", fix="pip install 'thalweg[hub]'"
        ) from error
    return datasets


def _unreachable(corpus: str, error: Exception) -> DataError:
    said = (str(error).splitlines() or [""])[0] or type(error).__name__
    return DataError(
        f"The data set cannot be read: {said}",
        where=corpus,
        fix="Check its name and your connection, or download it and give its folder.",
    )
