"""Tabular data with categories and numbers: the Exasens table (HCOPD_Dataset.csv), from its file to a trained model."""

import argparse
import csv
from pathlib import Path

from sluice.client import Client, stream
from sluice.streams.files import table

GENDER = {"0": "female", "1": "male"}
SMOKING = {"1": "never", "2": "former", "3": "active"}
MODEL = Path(__file__).with_name("model.py").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--token", required=True)
    given = parser.parse_args()

    with given.file.open() as file:
        rows = list(csv.DictReader(file))
    columns = {
        "gender": [GENDER[row["Gender"]] for row in rows],
        "age": [float(row["Age"]) for row in rows],
        "smoking": [SMOKING[row["Smoking"]] for row in rows],
        "copd": [row["Diagnosis"] for row in rows],
    }
    found = table(columns, label="copd")
    sent = stream(
        given.bootstrap,
        "copd",
        found.x,
        found.y,
        stream_id="copd",
        format="csv",
        features=found.features,
        labels=["no", "yes"],
        validation_rate=0.3,
    )
    with Client(given.url, given.token) as client:
        client.stream(sent, wait_s=60)
        client.add_model("copd", MODEL)
        training = client.train("copd", "copd", epochs=60, batch=10, learning_rate=0.01)
        done = client.wait_for_training(training["id"])
        print({name: round(values["val_accuracy"], 3) for name, values in done["metrics"][-1]["metrics"].items()})


if __name__ == "__main__":
    main()
