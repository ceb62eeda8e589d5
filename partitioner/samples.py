"""Calibration samples: from an `.npz` or arrays to what the model takes, checked once and for all.

In the npz: `x`, or one array for each input under its name; `y` (labels), `groups` (whom or what a sample is of) and
`labels` (names of the classes) may be missing.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitioner.anatomy.cut import Crossing
from sluice.wire.errors import PermanentError

LEAST = 20
"""Samples below which not even ranges and temperatures mean anything."""
KNOWN = ("y", "groups", "labels")
"""Arrays of an npz that are no input."""

Array = NDArray[np.generic]
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Samples:
    """`inputs`: (n, *shape) of each input, by the name under which it crosses; `y`: (n,) int64; `groups`: (n,) text."""

    inputs: Arrays
    y: NDArray[np.int64] | None = None
    groups: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def rows(self, indices: NDArray[np.int64]) -> Samples:
        """Those samples alone."""
        return Samples(
            {name: array[indices] for name, array in self.inputs.items()},
            None if self.y is None else self.y[indices],
            None if self.groups is None else self.groups[indices],
        )


def read_npz(path: Path) -> Arrays:
    """All arrays of `path`; `PermanentError` when it is no npz of plain arrays (pickled objects are never loaded)."""
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise PermanentError(f"{path} is no .npz file: write it with numpy.savez")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise PermanentError(f"{path} is no .npz file of plain arrays: {error}") from error


def fitting(
    arrays: Mapping[str, Array], names: list[str], inputs: tuple[Crossing, ...], classes: int | None
) -> Samples:
    """The samples in `arrays`, as the model takes them; `PermanentError` says which array does not fit, and how.

    `names` are the model's inputs, `inputs` how they cross, in the same order. `classes` None: the model does not
    classify, and labels are not looked at.
    """
    only_x = len(names) == 1 and "x" in arrays
    found = {}
    for name, wanted in zip(names, inputs, strict=True):
        key = "x" if only_x else name
        if key not in arrays:
            given = ", ".join(sorted(set(arrays) - set(KNOWN))) or "none"
            needed = "`x`" if len(names) == 1 else f"one for each input ({', '.join(names)})"
            raise PermanentError(f"the data have no array {key!r}: {needed} is needed, there are: {given}")
        found[wanted.name] = _as_input(arrays[key], key, wanted)
    sizes = {name: len(array) for name, array in found.items()}
    n = next(iter(sizes.values()))
    if len(set(sizes.values())) > 1:
        raise PermanentError(f"the inputs have different numbers of samples: {', '.join(map(str, sizes.values()))}")
    if n < LEAST:
        raise PermanentError(f"{n} samples to calibrate on: {LEAST} at least")
    y = arrays.get("y")
    groups = arrays.get("groups")
    return Samples(
        found,
        None if y is None or classes is None else _as_labels(y, n, classes),
        None if groups is None else _as_groups(groups, n),
    )


def label_names(arrays: Mapping[str, Array]) -> list[str]:
    """The names of the classes in `labels`, if they are told."""
    return [str(label) for label in arrays["labels"].ravel()] if "labels" in arrays else []


def _as_input(array: Array, key: str, wanted: Crossing) -> Array:
    if array.ndim < 1 or array.shape[1:] != wanted.shape:
        raise PermanentError(f"{key}: samples have shape {list(array.shape[1:])}, the model takes {list(wanted.shape)}")
    if not np.can_cast(array.dtype, wanted.dtype, "same_kind"):
        raise PermanentError(f"{key}: samples are {array.dtype}, the model takes {wanted.dtype}")
    if not len(array):
        raise PermanentError(f"{key}: there are no samples in it")
    array = array.astype(wanted.dtype, copy=False)
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(bad):
            raise PermanentError(
                f"{key}: {len(bad)} of {len(array)} samples hold NaN or infinity, first number {bad[0]}"
            )
    return array


def _as_labels(y: Array, n: int, classes: int) -> NDArray[np.int64]:
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise PermanentError(f"y is {y.dtype}{list(y.shape)}: {n} whole numbers are needed, one label a sample")
    if not (y.min() >= 0 and y.max() < classes):
        raise PermanentError(f"labels go from {y.min()} to {y.max()}, the model has {classes} classes")
    labels = y.astype(np.int64)
    if len(np.unique(labels)) < 2:
        raise PermanentError(f"all {n} samples have label {labels[0]}: nothing can be calibrated on one class")
    return labels


def _as_groups(groups: Array, n: int) -> NDArray[np.str_]:
    if groups.shape != (n,) or groups.dtype.kind not in "iuUS":
        raise PermanentError(f"groups is {groups.dtype}{list(groups.shape)}: {n} numbers or texts are needed")
    return groups.astype(np.str_)
