"""Public data sets for benchmarks: MNIST and UCI HAR, from the folder that `SLUICE_DATA` names.

None of them is part of the project. By default the folder is `../shared/data`, seen from the project; where a file is
absent, the benchmark ends with a line that says which.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
HAR_CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Har:
    """UCI HAR: windows (n, 128, 9) float32 at 50 Hz, labels (n,) of `HAR_CLASSES`, and who moved (n,).

    Anguita et al., "A Public Domain Dataset for Human Activity Recognition Using Smartphones", ESANN 2013. The test
    set's people are others than the training set's.
    """

    x_train: NDArray[np.float32]
    y_train: Labels
    subject_train: Labels
    x_test: NDArray[np.float32]
    y_test: Labels
    subject_test: Labels


def folder() -> Path:
    """Where the data are."""
    return Path(os.environ.get("SLUICE_DATA", ROOT.parent / "shared" / "data"))


def mnist() -> tuple[Images, Labels, Images, Labels]:
    """(x_train (60000, 28, 28) uint8, y_train (60000,), x_test (10000, 28, 28), y_test (10000,)).

    LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 86, 1998.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_idx("mnist", f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28))
        labels.append(_idx("mnist", f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64))
    return images[0], labels[0], images[1], labels[1]


def har() -> Har:
    """The inertial signals of UCI HAR, as they are."""
    with np.load(_file("uci-har", "uci_har_inertial.npz"), allow_pickle=False) as arrays:
        x = {part: arrays[f"x_{part}"].astype(np.float32) for part in ("train", "test")}
        whole = {name: arrays[name].astype(np.int64) for name in arrays.files if name[0] in "ys"}
    first = min(int(whole["y_train"].min()), int(whole["y_test"].min()))
    return Har(
        x["train"],
        whole["y_train"] - first,
        whole["subject_train"],
        x["test"],
        whole["y_test"] - first,
        whole["subject_test"],
    )


def _idx(name: str, file: str, header: int) -> NDArray[np.uint8]:
    """The bytes of a gzipped IDX file after its header."""
    return np.frombuffer(gzip.decompress(_file(name, file).read_bytes()), np.uint8, offset=header)


def _file(*parts: str) -> Path:
    path = folder().joinpath(*parts)
    if not path.is_file():
        raise SystemExit(f"skipped: {path} is not there; SLUICE_DATA names the folder of the data sets")
    return path
