"""What online learning is compared with: the same updates from arrays in memory, as a user of Keras writes the loop.

Each batch is answered, then learnt from together with as many samples of a reservoir. Nothing is kept but the weights:
no checkpoint, no offsets, no drift, nothing held back. Run as a program, so that it has a process of its own as a job
has: `python -m bench.bare_online MODEL.keras DATA.npz BATCH REPLAY BUFFER WARM`, prints samples a second and accuracy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np


def learn_on(model: Any, x: Any, y: Any, batch: int, replay: int, buffer: int, warm: int) -> tuple[float, float]:
    """(samples a second after the first `warm` ones, accuracy of the final exit before each update, in whole)."""
    random = np.random.default_rng(0)
    kept_x, kept_y, seen = np.empty((buffer, *x.shape[1:]), x.dtype), np.empty(buffer, np.int64), 0
    right, begun = 0, time.perf_counter()
    for at in range(0, len(y), batch):
        if at <= warm < at + batch:
            begun, first = time.perf_counter(), at
        new_x, new_y = x[at : at + batch], y[at : at + batch]
        outputs = model.predict_on_batch(new_x)
        right += int((outputs["final"].argmax(axis=-1) == new_y).sum())
        rows = random.choice(min(seen, buffer), min(replay, seen, buffer), replace=False) if seen else np.empty(0, int)
        mixed_y = np.concatenate([new_y, kept_y[rows]])
        model.train_on_batch(np.concatenate([new_x, kept_x[rows]]), {"early": mixed_y, "final": mixed_y})
        for i in range(len(new_y)):
            slot = seen if seen < buffer else int(random.integers(seen + 1))
            if slot < buffer:
                kept_x[slot], kept_y[slot] = new_x[i], new_y[i]
            seen += 1
    return (len(y) - first) / (time.perf_counter() - begun), right / len(y)


def main() -> None:
    """See the module."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    model = keras.models.load_model(sys.argv[1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss=dict.fromkeys(model.output, loss))
    with np.load(sys.argv[2]) as arrays:
        x, y = arrays["x"], arrays["y"]
    rate, accuracy = learn_on(model, x, y, *map(int, sys.argv[3:7]))
    print(json.dumps({"rate": rate, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
