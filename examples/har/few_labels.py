"""Windows of sensors (uci_har_inertial.npz) of which few have a label: all are learnt from, then others are asked."""

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
    parser.add_argument("--labelled", type=int, default=240)
    given = parser.parse_args()

    with np.load(given.file) as data:
        x, y = data["x_train"].astype(np.float32), data["y_train"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order] - y.min()  # the file counts from 1
    known = len(x) * 4 // 5  # the others are for the evaluation
    few = y[:known].copy()
    few[given.labelled :] = -1
    how = {"format": "raw", "labels": LABELS, "partitions": 2}
    stream(given.bootstrap, "har-few", x[:known], few, stream_id="har-few", validation_rate=0.2, **how)
    stream(given.bootstrap, "har-new", x[known:], y[known:], stream_id="har-new", **how)
    with Client(given.url, given.token) as client:
        client.stream("har-few", wait_s=60)
        client.add_model("har", MODEL)
        pseudo = {"confidence": 0.9, "rounds": 3}
        stopping = {"patience": 5, "share": 0.2}
        training = client.train(
            "har", "har-few", epochs=given.epochs, batch=64, early_stopping=stopping, pseudo_labels=pseudo
        )
        for one in client.wait_for_training(training["id"])["result"]["rounds"]:
            print(f"round {one['round']}: {one['labelled']} labelled, gain {one['gain']}{', kept' * one['kept']}")
        client.stream("har-new", wait_s=60)
        evaluation = client.evaluate("har-new", training=training["id"])
        metrics = client.wait_for_evaluation(evaluation["id"])["result"]["metrics"]
        print({name: round(values["accuracy"], 3) for name, values in metrics.items()})


if __name__ == "__main__":
    main()
