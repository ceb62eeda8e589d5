"""Samples as `tf.data`: each once an epoch with its own label, however many batches are brought together at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow

X = np.random.default_rng(0).normal(size=(1000, 3, 2)).astype(np.float32)
Y = np.arange(1000)
PIECES = {"a batch": 1, "five batches": 5 * 7 * 24, "all": 2_000_000}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("kept", ["in memory", "in a file"])
def test_each_sample_once_with_its_own_label(
    piece: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sluice.streams import tensorflow as streams

    monkeypatch.setattr(streams, "TOGETHER_BYTES", PIECES[piece])
    x: Any = X.copy()
    if kept == "in a file":
        x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", X.dtype, X.shape)
        x[:] = X

    def epoch(data: Any) -> tuple[list[int], list[int]]:
        batches = [(values.numpy(), labels.numpy()) for values, labels in data]
        for values, labels in batches:
            np.testing.assert_array_equal(values, X[labels])
        return [len(labels) for _, labels in batches], np.concatenate([labels for _, labels in batches]).tolist()

    rows = np.flatnonzero(Y % 3)
    data = streams.dataset(x, Y, 7, 3, rows)
    assert data.element_spec[0].shape.as_list() == [None, 3, 2] and len(data) == 96
    (sizes, first), (_, second) = epoch(data), epoch(data)
    assert sizes == [7] * 95 + [1]
    assert sorted(first) == sorted(second) == rows.tolist() and first != second
    assert epoch(streams.dataset(x, Y, 7, 3, rows))[1] == first, "the same seed, the same order"
    assert epoch(streams.dataset(x, Y, 250))[1] == Y.tolist(), "whole batches alone, in their order"
    assert epoch(streams.dataset(x, Y, 5000)) == ([1000], Y.tolist()), "one that is not whole alone"


def test_without_labels() -> None:
    from sluice.streams.tensorflow import dataset

    found = [x.numpy() for x in dataset(X.copy(), None, 300)]
    assert [len(x) for x in found] == [300, 300, 300, 100]
    np.testing.assert_array_equal(np.concatenate(found), X)
