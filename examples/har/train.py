"""Windows of sensors: UCI HAR (uci_har_inertial.npz), from its file to a trained model."""

import argparse
from pathlib import Path

import numpy as np

from sluice.client import Client, stream

MODEL = Path(__file__).with_name("model.py").read_text()
LABELS = ["walking", "upstairs", "downstairs", "sitting", "standing", "laying"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--token", required=True)
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args()

    with np.load(given.file) as data:
        x, y = data["x_train"].astype(np.float32), data["y_train"].astype(np.int64)
    y -= y.min()  # the file counts from 1
    sent = stream(
        given.bootstrap,
        "har",
        x,
        y,
        stream_id="har",
        format="raw",
        labels=LABELS,
        partitions=2,
        validation_rate=0.3,
    )
    with Client(given.url, given.token) as client:
        client.stream(sent, wait_s=60)
        client.add_model("har", MODEL)
        training = client.train("har", "har", epochs=given.epochs, batch=64)
        done = client.wait_for_training(training["id"])
        print({name: round(values["val_accuracy"], 3) for name, values in done["metrics"][-1]["metrics"].items()})


if __name__ == "__main__":
    main()
