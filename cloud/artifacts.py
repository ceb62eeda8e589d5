"""A store of files named by the sha256 of their content: models in one folder, blobs of bundles in another.

What is in the store is whole: a file is written beside it and moved in under its name. Storing the same content twice
is one file, so a file that nobody refers to yet does no harm.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sluice.wire.errors import PermanentError

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored file: its sha256 in hex and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of files named by their content."""

    folder: Path

    def path(self, sha256: str) -> Path:
        """Where the content `sha256` is, or would be; the caller has checked that it is a digest."""
        return self.folder / sha256

    def has(self, sha256: str) -> bool:
        """Whether that content is there."""
        return self.path(sha256).is_file()

    def add(self, source: BinaryIO, limit: int, wanted: str | None = None) -> Stored:
        """Store what `source` holds, whole or not at all.

        Raises `PermanentError` over `limit` bytes, or when the content does not have the sha256 `wanted`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".new-", delete=False) as file:
            temporary = Path(file.name)
            try:
                for chunk in _chunks(source):
                    size += len(chunk)
                    if size > limit:
                        raise PermanentError(f"content is over the limit of {limit} bytes")
                    digest.update(chunk)
                    file.write(chunk)
                found = digest.hexdigest()
                if wanted is not None and found != wanted:
                    raise PermanentError(f"content has digest {found[:12]}…, wanted is {wanted[:12]}…")
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(self.path(found))
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return Stored(found, size)


def open_output(folder: Path, name: str) -> BinaryIO:
    """Open the file `name` that a job left in its `folder`, for reading.

    A job runs foreign code, so nothing but a regular file inside the folder will do: a link could lead to a secret of
    the service. Raises `PermanentError` otherwise.
    """
    path = folder / name
    if path.parent.resolve() != folder.resolve() / Path(name).parent:
        raise PermanentError(f"the job's {name} lies behind a link")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise PermanentError(f"the job left no readable {name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PermanentError(f"the job's {name} is not a file")
    return os.fdopen(descriptor, "rb")


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk
