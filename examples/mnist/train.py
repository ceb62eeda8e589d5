"""Images: MNIST, from the usual four files' first two (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz)."""

import argparse
import gzip
from pathlib import Path

import numpy as np

from sluice.client import Client, stream

MODEL = Path(__file__).with_name("model.py").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--token", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()

    pixels = gzip.decompress((given.folder / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((given.folder / "train-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    y = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    sent = stream(given.bootstrap, "mnist", x, y, stream_id="mnist", format="raw", partitions=2)
    with Client(given.url, given.token) as client:
        client.stream(sent, wait_s=60)
        client.add_model("mnist", MODEL)
        training = client.train("mnist", "mnist", epochs=given.epochs, batch=128)
        done = client.wait_for_training(training["id"])
        print({name: round(values["val_accuracy"], 3) for name, values in done["metrics"][-1]["metrics"].items()})


if __name__ == "__main__":
    main()
