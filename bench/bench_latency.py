"""One prediction for `hcopd` through Kafka, next to calling the Keras model: milliseconds, one after the other.

The model of `examples/copd`, trained for a moment, is partitioned into a bundle whose only place is the fog: the raw
input is offloaded (`next_segment` 0). Through Kafka means: a sample encoded as an `Offload` and written to
`sluice.offload.fog.copd`, a stage's worker in a process of its own, and its `Prediction` read from
`sluice.predictions` and decoded. Both sides answer the same patients, and must give the same labels.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench import data
from bench.bare_latency import called, predicted
from bench.chains import quiet_keras
from bench.report import Report
from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.streams.files import read_samples
from sluice.wire.bundle import Bundle, open_bundle
from sluice.wire.codec import encode_tensor
from sluice.wire.messages import Offload, Prediction, decode, encode
from sluice.wire.names import DEAD_LETTER, PREDICTIONS, offload_topic
from tests.brokers.kafka import Kafka

REPETITIONS = 5
SAMPLES = 100
WARM_UP = 10
LIMIT_MS = 10.0
MODEL = "copd"
TOPIC = offload_topic("fog", MODEL)
ANSWER_S = 30.0

Samples = NDArray[np.float32]


def trained(x: Samples, y: NDArray[np.int64]) -> Any:
    """The model of the example, after a few epochs."""
    keras = quiet_keras()
    keras.utils.set_random_seed(0)
    names: dict[str, Any] = {}
    exec((data.ROOT / "examples" / MODEL / "model.py").read_text(), names)
    model = names["model"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss=[loss, loss])
    model.fit(x, [y, y], batch_size=10, epochs=20, verbose=0)
    return model


def make_bundle(model: Any, x: Samples, folder: Path) -> Bundle:
    """The model, partitioned so that all of it runs on the fog, in `folder`/digest."""
    from partitioner.partition import Source, partition
    from partitioner.settings import PartitionSettings

    settings = PartitionSettings(placement=("fog",), exits="none", codec="raw")
    made = partition(model, {"x": x}, folder / "new", Source(MODEL, 1, ["no", "yes"]), settings)
    (folder / "new").rename(folder / made["digest"])
    return open_bundle(folder / made["digest"])


class ThroughKafka:
    """Who asks: writes an offload, waits for its prediction."""

    def __init__(self, cluster: KafkaCluster, bundle: Bundle) -> None:
        self._bundle = bundle
        self._point = bundle.manifest.operating_points[0].id
        self._writer = KafkaWriter("ask", cluster, linger_ms=0)
        self._reader = KafkaReader("answers", cluster, "answers")
        self._reader.assign_all(PREDICTIONS)
        self._seq = 0

    def ask(self, sample: Samples) -> tuple[float, int]:
        """(milliseconds, label) of one sample (*shape)."""
        begun = time.perf_counter()
        self._seq += 1
        (spec,) = self._bundle.manifest.inputs
        offload = Offload(
            device_id="patient",
            epoch="0123456789abcdef",
            seq=self._seq,
            source_id=None,
            model=MODEL,
            bundle=self._bundle.digest,
            operating_point=self._point,
            tier="fog",
            next_segment=0,
            tensors=(encode_tensor(sample, spec, "raw"),),
            beliefs=(),
            captured_at=0,
            ttl_ms=3_600_000,
        )
        self._writer.write(TOPIC, encode(offload), key="patient")
        self._writer.poll(0)
        while time.perf_counter() < begun + ANSWER_S:
            for record in self._reader.read(1, 0.1):
                answer = decode(record.value)
                if isinstance(answer, Prediction) and answer.seq == self._seq:
                    return 1000 * (time.perf_counter() - begun), answer.label
        raise RuntimeError(f"no prediction within {ANSWER_S:g} s")

    def close(self) -> None:
        """Leave."""
        self._reader.close()


def run(console: Console) -> Report:
    """Measure."""
    report = Report(f"one prediction for hcopd, {SAMPLES} patients one after the other")
    table = read_samples(data.folder() / "hcopd" / "HCOPD_Dataset.csv", label="Diagnosis")
    assert table.y is not None
    x = table.x.astype(np.float32)
    console.print("training, partitioning")
    model = trained(x, table.y)
    answering = quiet_keras().Model(model.inputs[0], model.outputs[1])
    rows = np.resize(np.arange(len(x)), (REPETITIONS, SAMPLES))
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary, Kafka() as kafka:
        folder = Path(temporary)
        bundle = make_bundle(model, x, folder)
        for topic in (TOPIC, PREDICTIONS, DEAD_LETTER):
            kafka.create_topic(topic, 1)
        settings = {
            "STAGE_TIER": "fog",
            "STAGE_KAFKA__BOOTSTRAP": kafka.bootstrap,
            "STAGE_CLOUD_URL": "http://127.0.0.1:9",
            "STAGE_DATA": str(folder),
            "STAGE_LOG_LEVEL": "WARNING",
        }
        with Processes(folder / "logs") as processes:
            processes.start("stage", ["stage"], settings)
            client = ThroughKafka(KafkaCluster(bootstrap=kafka.bootstrap), bundle)
            for i in range(WARM_UP):
                client.ask(x[i])
            called(answering, x[:WARM_UP])
            predicted(answering, x[:WARM_UP])
            for repetition in range(REPETITIONS):
                _repetition(report, client, answering, x[rows[repetition]], ours_first=repetition % 2 == 1)
            client.close()
    _judge(report)
    return report


def _repetition(report: Report, client: ThroughKafka, model: Any, x: Samples, ours_first: bool) -> None:
    direct = None if ours_first else called(model, x)
    ours = [client.ask(sample) for sample in x]
    times, labels = direct or called(model, x)
    if [label for _, label in ours] != labels:
        raise RuntimeError("through Kafka come other labels than from the model itself")
    slow = statistics.median(predicted(model, x)[0])
    through = [ms for ms, _ in ours]
    for what, figure in (("p50", 50), ("p99", 99)):
        row = report.row(f"through Kafka against model(x), {what}", "ms")
        row.ours.append(float(np.percentile(through, figure)))
        row.baseline.append(float(np.percentile(times, figure)))
    row = report.row("through Kafka against model.predict(x), p50", "ms")
    row.ours.append(statistics.median(through))
    row.baseline.append(slow)
    report.row(f"added to model(x), p50 (limit {LIMIT_MS:g})", "ms").ours.append(
        statistics.median(through) - statistics.median(times)
    )


def _judge(report: Report) -> None:
    added, _, _ = report.row(f"added to model(x), p50 (limit {LIMIT_MS:g})", "ms").medians()
    if added > LIMIT_MS:
        report.notes.append(f"MISSED: {added:.1f} ms added, {LIMIT_MS:g} at most are wanted")
    report.notes.append("Kafka-ML's paper (arXiv 2006.04105): 374 ms through Kafka, 79 ms by calling the model")
