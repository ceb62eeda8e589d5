"""Consumer groups on real Kafka: what was used is committed, what was not is read again, readers share, lag is told."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.doors.kafka_topics import ensure_topics
from sluice.streams.bad import BadRecords, letters_to
from sluice.streams.group import Group
from sluice.streams.send import send_stream
from sluice.wire.names import DEAD_LETTER
from sluice.wire.state import Announcement
from tests.brokers.kafka import Kafka
from tests.integration.group_member import BATCH

pytestmark = pytest.mark.brokers

X = np.arange(2000, dtype=np.float32).reshape(1000, 2)
Y = np.arange(1000) % 5


@pytest.fixture
def cluster(kafka: Kafka) -> KafkaCluster:
    return KafkaCluster(bootstrap=kafka.bootstrap)


@pytest.fixture
def stream(cluster: KafkaCluster, unique: str) -> Announcement:
    return send_stream(cluster, unique, X, Y, stream_id=unique, format="raw", partitions=4)


def member(cluster: KafkaCluster, stream: Announcement, timeout_s: float | None = 3.0, batch: int = 100) -> Group:
    topic = stream.stream_id
    return Group(cluster, [topic], stream.format, stream.config, f"g-{topic}", timeout_s=timeout_s, batch=batch)


def test_it_goes_on_where_it_stopped(cluster: KafkaCluster, stream: Announcement) -> None:
    seen: list[float] = []
    with member(cluster, stream) as first:
        for count, batch in enumerate(first):
            if count == 3:
                break  # read, and never used
            seen += batch.x[:, 0].tolist()
            assert first.commit(batch)
        before = sum(first.lag().values())
    assert 0 < before < 1000
    with member(cluster, stream) as second:
        for batch in second:
            seen += batch.x[:, 0].tolist()
            second.commit(batch)
        assert set(second.lag().values()) == {0}
    assert sorted(seen) == X[:, 0].tolist(), "each once: what was not used was read again, what was used was not"
    with member(cluster, stream) as third:
        assert list(third) == []


class Members:
    """Members of one group, each a process, and what they used: (member, topic partition, number), as it was said."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self.command = [sys.executable, "-m", "tests.integration.group_member", kafka.bootstrap, topic]
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.used: list[tuple[str, int, int]] = []
        self.gone: set[str] = set()
        self._said: queue.Queue[tuple[str, str]] = queue.Queue()

    def start(self, name: str) -> None:
        process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.processes[name] = process
        threading.Thread(target=self._hear, args=(name, process), daemon=True).start()

    def _hear(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._said.put((name, line))
        self._said.put((name, ""))

    def until(self, what: Callable[[], bool], patience_s: float = 60) -> None:
        deadline = time.monotonic() + patience_s
        while not what():
            try:
                name, line = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"waited {patience_s} s in vain; {len(self.used)} uses so far") from None
            if not line:
                self.gone.add(name)
            else:
                self.used += [(name, place, number) for place, number in json.loads(line)]

    def readers(self) -> dict[int, str]:
        """Of each topic partition the member that used a record of it last."""
        return {place: name for name, place, _ in self.used}

    def tell_to_leave(self, name: str) -> None:
        pipe = self.processes[name].stdin
        assert pipe is not None
        pipe.close()

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


@pytest.mark.parametrize("how", ["leaves", "is killed"])
def test_readers_of_a_group_share(kafka: Kafka, cluster: KafkaCluster, unique: str, how: str) -> None:
    """Each of two reads two of four topic partitions; when one goes the other one takes over, and nothing is lost."""
    kafka.create_topic(unique, 4)
    writer, written = KafkaWriter("numbers", cluster, linger_ms=0), 0
    members = Members(kafka, unique)

    def write() -> None:
        """One more record on each topic partition."""
        nonlocal written
        for place in range(4):
            writer.write(unique, np.array([place, written]).tobytes(), partition=place)
        assert writer.flush(10) == 0
        written += 1

    def shared() -> bool:
        write()
        return sorted(Counter(members.readers().values()).values()) == [2, 2]

    try:
        for name in ("a", "b"):
            members.start(name)
        members.until(shared)
        members.tell_to_leave("a") if how == "leaves" else members.processes["a"].kill()
        members.until(lambda: "a" in members.gone)
        write()
        last = {("b", place, written - 1) for place in range(4)}
        members.until(lambda: last <= set(members.used))
    finally:
        members.end()
    times = Counter((place, number) for _, place, number in members.used)
    assert set(times) == {(place, number) for place in range(4) for number in range(written)}, "each was used"
    again = sum(count > 1 for count in times.values())
    assert again <= (BATCH if how == "is killed" else 0), "what was committed is not read again"


def test_the_lag_is_told_while_another_thread_waits_for_records(cluster: KafkaCluster, unique: str) -> None:
    ensure_topics(cluster, {unique: 2})
    config: dict[str, object] = {"shape": [2], "dtype": "float32"}
    told: queue.Queue[dict[tuple[str, int], int]] = queue.Queue()
    with Group(cluster, [unique], "raw", config, f"g-{unique}") as group:

        def look() -> None:
            while len(found := group.lag()) < 2 and not group.stopping:
                time.sleep(0.01)
            told.put(found)

        threads = [threading.Thread(target=lambda: list(group)), threading.Thread(target=look)]
        for thread in threads:
            thread.start()
        try:
            assert told.get(timeout=60) == {(unique, 0): 0, (unique, 1): 0}
        finally:
            group.stopping = True
            for thread in threads:
                thread.join(30)


def test_bad_records_are_left_out_and_kept(cluster: KafkaCluster, stream: Announcement) -> None:
    ensure_topics(cluster, {DEAD_LETTER: 1})
    writer = KafkaWriter("other", cluster)
    topic = stream.stream_id
    ours = topic.encode()
    writer.write_all(topic, [(b"1", ours)] * 3, 10)
    bad = BadRecords(5, letters_to(writer, "streams"))
    with Group(cluster, [topic], "raw", stream.config, f"b-{topic}", timeout_s=3, bad=bad) as reader:
        rows = sum(len(batch.y) for batch in reader)
    assert (rows, bad.count) == (1000, 3) and f"has {len(ours)} bytes, not 8" in str(bad.first)
    assert writer.flush(10) == 0
    of_others = BadRecords(most=1_000_000)
    shape: dict[str, object] = {"shape": [len(ours)], "dtype": "uint8"}
    with Group(cluster, [DEAD_LETTER], "raw", shape, f"l-{topic}", timeout_s=3, bad=of_others) as letters:
        found = [bytes(row) for batch in letters for row in batch.x if bytes(row) == ours]
    assert len(found) == 3


@pytest.mark.tensorflow
def test_training_commits_what_it_used(cluster: KafkaCluster, stream: Announcement) -> None:
    import keras

    from sluice.streams.samples import parse_config
    from sluice.streams.tensorflow import group_dataset

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with member(cluster, stream) as reader:
        data, commits = group_dataset(reader, parse_config(stream.config))
        model.fit(data, steps_per_epoch=4, verbose=0, shuffle=False, callbacks=[commits])
    with member(cluster, stream) as after:
        left = sum(len(batch.y) for batch in after)
    assert 1000 - 4 * 100 <= left < 1000, "four batches at most were used, however many were read ahead"


@pytest.mark.tensorflow
def test_a_stream_as_datasets(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    from sluice.streams.tensorflow import datasets

    def epochs(**how: Any) -> tuple[list[list[float]], list[float]]:
        train, held_out = datasets(cluster, stream, 64, seed=3, **how)
        rows = [np.concatenate([x.numpy()[:, 0] for x, _ in train]).tolist() for _ in range(2)]
        labels = np.concatenate([y.numpy() for _, y in held_out])
        assert np.bincount(labels).tolist() == [40] * 5, "a fifth of each class is held out"
        return rows, np.concatenate([x.numpy()[:, 0] for x, _ in held_out]).tolist()

    (first, second), held = epochs()
    assert sorted(first) == sorted(second) and first != second, "each epoch has all, in an order of its own"
    assert sorted(first + held) == X[:, 0].tolist()
    order = np.searchsorted(np.sort(np.array(first)), first)
    assert np.abs(np.diff(order)).mean() > 100, "shuffled over all topic partitions"
    assert epochs() == ([first, second], held), "the same seed, the same order"
    assert epochs(folder=tmp_path, memory_bytes=100) == ([first, second], held)
    assert (tmp_path / "samples.npy").stat().st_size > X.nbytes


def test_mini_batches_for_ever(cluster: KafkaCluster, stream: Announcement) -> None:
    """Without a timeout it waits for what comes, until it is told to stop."""
    seen: list[float] = []
    with member(cluster, stream, timeout_s=None, batch=64) as reader:
        for batch in reader:
            assert len(batch.y) <= 64
            seen += batch.x[:, 0].tolist()
            reader.commit(batch)
            if len(seen) == 1000:
                send_stream(cluster, stream.stream_id, X[:10] + 5000, Y[:10], stream_id="more", format="raw")
            reader.stopping = len(seen) == 1010
    assert sorted(seen) == sorted([*X[:, 0].tolist(), *(X[:10, 0] + 5000).tolist()])
