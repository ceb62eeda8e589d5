"""Samples from an `.npz` file: `x`, and `y` and `labels` if they are known."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from sluice.streams.samples import DTYPES, Array, Labels
from sluice.wire.errors import PermanentError


def read_samples(path: Path) -> tuple[Array, Labels | None, list[str]]:
    """x (n, *shape), y (n,) int64 or None, names of the classes (maybe none).

    Raises `PermanentError` when the file is no such npz; pickled objects are never loaded.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("x", "y", "labels") if name in arrays.files}
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise PermanentError(f"{path} is no .npz file of plain arrays: {error}") from error
    if "x" not in found or found["x"].ndim < 1:
        raise PermanentError(f"{path} has no array `x` of samples")
    x = found["x"]
    if x.dtype.name not in DTYPES:
        raise PermanentError(f"{path}: x is {x.dtype}, which is not one of {', '.join(DTYPES)}")
    y = found.get("y")
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iu"):
        raise PermanentError(f"{path}: y is {y.dtype}{list(y.shape)}, not {len(x)} whole numbers")
    labels = [str(label) for label in found["labels"].ravel()] if "labels" in found else []
    return x, None if y is None else y.astype(np.int64), labels
