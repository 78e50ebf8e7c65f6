"""What a corpus is: the standard library, a file or a folder, listed in a fixed order and known by its content.

`content()` is the hash of every file's name and bytes. Reading 5 GB to learn that nothing changed would be slow, so,
like git's index, the cache remembers which *fingerprint* (name, size, modification and change time of every file)
had which content hash. A fingerprint is only trusted when every file was at rest for a while before it was
hashed: a file written twice within one tick of the clock could otherwise look unchanged ("racy git").
"""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from thalweg.data.readers import COMPRESSIONS, FORMATS, SourceFile, classify, read_documents
from thalweg.data.tally import Tally
from thalweg.errors import DataError

AT_REST = 2_000_000_000
_NOT_STDLIB = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class DocumentSource(Protocol):
    """What a corpus offers, on this machine (Corpus) or elsewhere (remote.RemoteCorpus)."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def field(self) -> str: ...
    @property
    def oddities(self) -> Tally: ...
    @property
    def size(self) -> int | None: ...
    def fingerprint(self) -> str: ...
    def at_rest(self, now: int | None = None) -> bool: ...
    def content(self, advance: Callable[[int], None] = ...) -> str: ...
    def documents(self, tally: Tally | None = None, advance: Callable[[int], None] = ...) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Corpus:
    """Local files as one stream of documents.

    Attributes:
        name: as the user wrote it. identity: the same for the same place, whatever the spelling.
        files: sorted by relative name. oddities: what was counted while listing (see tally.py).
    """

    name: str
    identity: str
    field: str
    files: tuple[SourceFile, ...]
    oddities: Tally

    @property
    def size(self) -> int | None:
        """Bytes on disk: the length of a progress bar."""
        return sum(source.size for source in self.files)

    def fingerprint(self) -> str:
        """A quick stand-in for the content: names, sizes and times of all files."""
        digest = hashlib.blake2b(digest_size=16)
        for source in self.files:
            digest.update(_name_bytes(source))
            digest.update(f"\0{source.size} {source.modified} {source.changed}\n".encode())
        return digest.hexdigest()

    def at_rest(self, now: int | None = None) -> bool:
        """True when no file was touched within AT_REST nanoseconds before `now` (or later than it)."""
        now = time.time_ns() if now is None else now
        return all(max(source.modified, source.changed) < now - AT_REST for source in self.files)

    def content(self, advance: Callable[[int], None] = lambda count: None) -> str:
        """Hash of the names and bytes of all files. Raises DataError for a file that cannot be read."""
        digest = hashlib.blake2b(digest_size=16)
        for source in self.files:
            inner = hashlib.blake2b(digest_size=16)
            try:
                with open(source.path, "rb", buffering=0) as raw:
                    while block := raw.read(1 << 20):
                        inner.update(block)
                        advance(len(block))
            except OSError as error:
                raise _unreadable(source.path, error) from error
            digest.update(_name_bytes(source) + b"\0" + inner.digest())
        return digest.hexdigest()

    def documents(
        self, tally: Tally | None = None, advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[bytes]:
        """Every non-empty document as UTF-8 bytes, in file order."""
        tally = tally if tally is not None else Tally()
        for source in self.files:
            yield from read_documents(source, self.field, len(self.files) == 1, tally, advance)


def open_corpus(corpus: str | Path, field: str = "text") -> Corpus:
    """List the files of "stdlib", a file or a folder.

    Raises:
        DataError: nothing is there, or nothing of it can be read.
    """
    tally = Tally()
    if str(corpus) == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        paths = [path for path in _walk(root, _NOT_STDLIB, Tally()) if path.suffix == ".py"]
    else:
        root = Path(corpus).expanduser()
        if root.is_dir():
            paths = list(_walk(root, frozenset(), tally))
        else:
            _check_single(root, str(corpus))
            return _corpus(str(corpus), root, root.parent, [root], field, tally)
    return _corpus(str(corpus), root, root, paths, field, tally)


def _corpus(name: str, root: Path, base: Path, paths: list[Path], field: str, tally: Tally) -> Corpus:
    files = []
    for path in paths:
        kind = classify(path.name)
        relative = path.relative_to(base).as_posix()
        if kind is None:
            tally.add("unknown_extension", relative)
        else:
            files.append(_source(path, relative, *kind))
    if not files:
        raise DataError(
            "The corpus holds no file that can be read",
            where=str(root),
            fix=f"Files end in {' '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}.",
        )
    # Bytes order, so that the order does not depend on the locale or on undecodable names.
    files.sort(key=_name_bytes)
    return Corpus(name, os.path.realpath(root), field, tuple(files), tally)


def _walk(root: Path, leave_out: frozenset[str], tally: Tally) -> Iterator[Path]:
    """All files below `root` that are not hidden. Links to folders are not followed, so there are no loops."""

    def fail(error: OSError) -> None:
        raise _unreadable(Path(error.filename or root), error)

    for folder, folders, names in os.walk(root, onerror=fail):
        kept = []
        for name in sorted(folders):
            if name.startswith(".") or name in leave_out:
                continue
            if os.path.islink(os.path.join(folder, name)):
                tally.add("linked_folder", os.path.relpath(os.path.join(folder, name), root))
                continue
            kept.append(name)
        folders[:] = kept
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _check_single(path: Path, corpus: str) -> None:
    if not os.path.lexists(path):
        raise DataError(
            "There is no such corpus",
            where=corpus,
            fix='Give a file, a folder, "stdlib" or "hf:owner/name".',
        )
    if classify(path.name) is None:
        raise DataError(
            f"Files that end in {path.suffix or 'no extension'} are not read",
            where=str(path),
            fix=f"Files end in {' '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}.",
        )


def _source(path: Path, relative: str, kind: str, compression: str) -> SourceFile:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise DataError("This is not a regular file", where=str(path), fix="Take it out of the corpus.")
    return SourceFile(path, relative, kind, compression, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _name_bytes(source: SourceFile) -> bytes:
    return os.fsencode(source.relative)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"The file cannot be read: {error.strerror or error}",
        where=str(path),
        fix="Check that it exists and that you may read it, or take it out of the corpus.",
    )
