"""SUSY (UCI 279, Baldi et al. 2014): rows of a label and 18 numbers, as TensorFlow's tutorial for Kafka reads them.

The file has 5 million rows; `--rows` takes the first of them.
"""

import argparse
import gzip
import itertools
from pathlib import Path

import numpy as np

from sluice.client import Client, stream

MODEL = """
x = keras.Input((18,), name="event")
h = layers.Dense(64, activation="relu")(x)
early = layers.Dense(2, name="early")(h)
final = layers.Dense(2, name="final")(layers.Dense(64, activation="relu")(layers.Dropout(0.2)(h)))
model = keras.Model(x, [early, final])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="SUSY.csv.gz")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--token", required=True)
    given = parser.parse_args()

    with gzip.open(given.file, "rt") as file:
        rows = np.loadtxt(itertools.islice(file, given.rows), np.float32, delimiter=",", ndmin=2)
    x, y = rows[:, 1:], rows[:, 0].astype(np.int64)
    sent = stream(given.bootstrap, "susy", x, y, stream_id="susy", format="csv", labels=["background", "signal"])
    with Client(given.url, given.token) as client:
        client.stream(sent, wait_s=60)
        client.add_model("susy", MODEL)
        done = client.wait_for_training(client.train("susy", "susy", epochs=5, batch=256)["id"])
        print({name: round(values["val_accuracy"], 3) for name, values in done["metrics"][-1]["metrics"].items()})


if __name__ == "__main__":
    main()
