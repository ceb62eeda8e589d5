"""What training from a stream is compared with: Keras' own `fit` on arrays, as its documentation shows it.

    python -m bench.bare_training FOLDER

FOLDER holds `spec.json` (`source` of a model with the outputs [early, final]; `epochs`, `batch`, `learning_rate`,
`seed`) and `arrays.npz` (`x`, `y` to train on, `x_val`, `y_val` to validate with). It leaves the trained model there,
and `result.json`: `seconds` from arrays in memory to the saved model, `accuracy` of the final exit on `x_val`. To start
Python, to import TensorFlow and to load the arrays is not in the seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.chains import quiet_keras


def train(keras: Any, folder: Path) -> tuple[float, float]:
    """(seconds, validation accuracy of the final exit)."""
    spec = json.loads((folder / "spec.json").read_text())
    with np.load(folder / "arrays.npz") as file:
        x, y, x_val, y_val = (file[name] for name in ("x", "y", "x_val", "y_val"))
    begun = time.perf_counter()
    keras.utils.set_random_seed(spec["seed"])
    names: dict[str, Any] = {"keras": keras, "layers": keras.layers}
    exec(spec["source"], names)
    model = names["model"]
    model.compile(
        keras.optimizers.Adam(spec["learning_rate"]),
        loss=[keras.losses.SparseCategoricalCrossentropy(from_logits=True) for _ in range(2)],
        metrics=[["accuracy"], ["accuracy"]],
    )
    told = model.fit(
        x,
        [y, y],
        batch_size=spec["batch"],
        epochs=spec["epochs"],
        validation_data=(x_val, [y_val, y_val]),
        verbose=0,
    )
    model.save(folder / "model.keras")
    return time.perf_counter() - begun, float(told.history["val_final_accuracy"][-1])


def main() -> None:
    """Train, and say how it went."""
    keras = quiet_keras()
    folder = Path(sys.argv[1])
    seconds, accuracy = train(keras, folder)
    (folder / "result.json").write_text(json.dumps({"seconds": seconds, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
