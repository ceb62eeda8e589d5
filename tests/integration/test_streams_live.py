"""The live feed on real Kafka: job and feed are killed, each record is used once all the same, and lag is told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import TopicPartition

from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.kafka_topics import ensure_topics
from sluice.streams.fed import Fed
from sluice.wire.errors import PermanentError
from sluice.wire.names import DEAD_LETTER
from sluice.wire.state import Announcement
from tests.brokers.kafka import Kafka

pytestmark = pytest.mark.brokers

WAIT_S = 90.0
N = 1000
X = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
Y = np.arange(N) % 5
PARTITIONS = 3
ROOT = Path(__file__).parents[2]

JOB = """
import json, os, pathlib, sys, time
from sluice.streams.fed import Fed

fed, folder, pace_s = Fed(int(sys.argv[1])), pathlib.Path(sys.argv[2]), float(sys.argv[3])
kept = folder / "checkpoint.json"
ends, seen, waiting = {}, [], None
if kept.exists():
    found = json.loads(kept.read_text())
    ends, seen = {(t, p): o for t, p, o in found["ends"]}, found["seen"]
fed.begin(ends)
for count, batch in enumerate(fed):
    ends.update(batch.ends)
    seen += [[int(v), int(p), int(o)] for v, p, o in zip(batch.x[:, 0], batch.places, batch.offsets)]
    time.sleep(pace_s)
    if count % 3 == 0:  # a checkpoint now and then: what came after the last one comes again
        new = folder / "new.json"
        new.write_text(json.dumps({"ends": [[t, p, o] for (t, p), o in ends.items()], "seen": seen}))
        os.replace(new, kept)
        fed.used(batch)
new.write_text(json.dumps({"ends": [[t, p, o] for (t, p), o in ends.items()], "seen": seen}))
os.replace(new, kept)
fed.used(batch)
fed.close()
(folder / "done").touch()
"""


@pytest.fixture
def cluster(kafka: Kafka) -> KafkaCluster:
    return KafkaCluster(bootstrap=kafka.bootstrap)


@pytest.fixture
def stream(cluster: KafkaCluster, unique: str) -> Announcement:
    return sent(cluster, unique, range(N))


def sent(cluster: KafkaCluster, topic: str, rows: range) -> Announcement:
    """These records, dealt out to three topic partitions in turn."""
    ensure_topics(cluster, {topic: PARTITIONS})
    writer = KafkaWriter("send", cluster)
    for i in rows:
        writer.write(topic, X[i].tobytes(), key=str(Y[i]), partition=i % PARTITIONS)
    assert writer.flush(30) == 0
    said = {"stream_id": topic, "slices": [f"{topic}:0:0:1"], "format": "raw", "validation_rate": 0, "count": 1}
    return Announcement.model_validate(said | {"config": {"shape": [2], "dtype": "float32"}})


def wish(cluster: KafkaCluster, stream: Announcement, **live: Any) -> dict[str, Any]:
    topic = stream.stream_id
    live = {"topics": [topic], "group": f"l-{topic}", "batch": 40} | live
    return {"kafka": cluster.model_dump(), "stream": stream.model_dump(), "live": live}


def start_feed(wished: dict[str, Any]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    fed, feeding = socket.socketpair()
    with feeding:
        feed = subprocess.Popen(
            [sys.executable, "-m", "sluice.streams.feed", str(feeding.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(feeding.fileno(),),
        )
    assert feed.stdin is not None
    with feed.stdin:
        feed.stdin.write(json.dumps(wished).encode() + b"\n")
    return feed, fed


@pytest.fixture
def feeding() -> Iterator[Callable[[dict[str, Any]], tuple[subprocess.Popen[bytes], Fed]]]:
    """Feeds for this process; none is left."""
    feeds = []

    def start(wished: dict[str, Any]) -> tuple[subprocess.Popen[bytes], Fed]:
        feed, fed = start_feed(wished)
        feeds.append(feed)
        return feed, Fed(fed.detach())

    yield start
    for feed in feeds:
        feed.kill()
        feed.wait()


def committed(cluster: KafkaCluster, topic: str) -> int:
    """The sum of what the group has committed."""
    reader = KafkaReader("look", cluster, f"l-{topic}")
    try:
        return sum(reader.committed([(topic, partition) for partition in range(PARTITIONS)]).values())
    finally:
        reader.close()


def test_each_record_once_across_kills(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    """Of the job and of the feed, at any moment: between reading, using, keeping and committing."""
    random = np.random.default_rng(0)
    deadline = time.monotonic() + WAIT_S
    kept, kills = tmp_path / "checkpoint.json", 0
    while not (tmp_path / "done").exists():
        assert time.monotonic() < deadline
        feed, fed = start_feed(wish(cluster, stream, timeout_s=3))
        pace_s = 0.05 if kills < 4 else 0.0
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(fed.fileno()), str(tmp_path), str(pace_s)],
            pass_fds=(fed.fileno(),),
            cwd=ROOT,
            stderr=None,
        )
        fed.close()
        if kills < 4:
            before = kept.stat().st_mtime_ns if kept.exists() else 0
            while not kept.exists() or kept.stat().st_mtime_ns == before:  # it has come further than the last one
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(float(random.random()) * 0.2)
            os.kill((job if kills % 2 == 0 else feed).pid, signal.SIGKILL)
            kills += 1
        job.wait(WAIT_S)
        feed.wait(WAIT_S)
    found = json.loads(kept.read_text())
    values = [value for value, _, _ in found["seen"]]
    assert sorted(values) == X[:, 0].astype(int).tolist(), "each once"
    assert kills == 4
    ends = {partition: offset for _, partition, offset in found["ends"]}
    assert sum(ends.values()) == N
    assert committed(cluster, stream.stream_id) == N, "and from outside it looks the same"


def test_the_job_decides_where_it_begins(cluster: KafkaCluster, stream: Announcement, feeding: Any) -> None:
    topic = stream.stream_id
    feed, fed = feeding(wish(cluster, stream, timeout_s=3))
    fed.begin({(topic, 0): 100, (topic, 1): 50, (topic, 2): 0})
    offsets: dict[int, list[int]] = {0: [], 1: [], 2: []}
    numbers = []
    for batch in fed:
        names = [partition for _, partition in batch.ends]
        for place, offset in zip(batch.places, batch.offsets, strict=True):
            offsets[names[place]].append(int(offset))
        numbers.append(batch.number)
    assert numbers == list(range(1, len(numbers) + 1))
    assert [found[0] for found in offsets.values()] == [100, 50, 0]
    assert sum(map(len, offsets.values())) == N - 150
    assert all(found == list(range(found[0], found[-1] + 1)) for found in offsets.values())
    fed.close()
    assert feed.wait(WAIT_S) == 0
    assert committed(cluster, topic) == 0, "nothing was said to be used"


def test_what_is_used_is_committed_and_the_job_sees_its_lag(
    cluster: KafkaCluster, stream: Announcement, feeding: Any
) -> None:
    topic = stream.stream_id
    feed, fed = feeding(wish(cluster, stream))
    fed.begin({})
    batches = []
    for batch in fed:
        batches += [batch] if len(batch.y) else []  # an empty one comes where nothing else does
        if sum(len(one.y) for one in batches) == N:
            break
    first = batches[1]
    assert fed.lag is not None
    fed.used(first)
    fed.close()
    assert feed.wait(WAIT_S) == 0
    used = sum(len(one.y) for one in batches[:2])
    assert committed(cluster, topic) == used > 0, "only what was said to be used"
    _, second = feeding(wish(cluster, stream, timeout_s=3))
    second.begin({})
    assert sum(len(batch.y) for batch in second) == N - used, "without a word of the job the group decides"
    assert second.lag == 0 or second.lag is None
    second.close()


def test_bad_records_have_no_place(cluster: KafkaCluster, stream: Announcement, feeding: Any) -> None:
    ensure_topics(cluster, {DEAD_LETTER: 1})
    topic = stream.stream_id
    KafkaWriter("other", cluster).write_all(topic, [(b"1", b"short")] * 3, 10)
    _, fed = feeding(wish(cluster, stream, timeout_s=3) | {"bad_most": 5})
    fed.begin({})
    seen = 0
    ends: dict[tuple[str, int], int] = {}
    for batch in fed:
        assert len(batch.places) == len(batch.offsets) == len(batch.y) == len(batch.x)
        seen += len(batch.y)
        ends |= batch.ends
    assert (seen, fed.bad, sum(ends.values())) == (N, 3, N + 3)
    assert "has 5 bytes, not 8" in str(fed.first_bad)
    fed.close()
    _, strict = feeding(wish(cluster, stream, timeout_s=3))
    strict.begin(ends)
    KafkaWriter("other", cluster).write_all(topic, [(b"1", b"short")], 10)
    with pytest.raises(PermanentError, match="has 5 bytes, not 8"):
        list(strict)


@pytest.mark.parametrize("line", [b'{"from": [["elsewhere", 0, 0]]}\n', b"nonsense\n", b'{"from": []}\n{"used": 99}\n'])
def test_a_job_that_says_what_it_may_not_has_its_feed_ended(
    cluster: KafkaCluster, stream: Announcement, line: bytes
) -> None:
    feed, fed = start_feed(wish(cluster, stream))
    with fed:
        fed.sendall(line)
        told = Fed(fed.detach())
        with pytest.raises(PermanentError, match="the job"):
            for _ in told:
                pass
    assert feed.wait(WAIT_S) == 0


def test_retention_that_was_faster_is_counted(
    cluster: KafkaCluster, kafka: Kafka, stream: Announcement, feeding: Any
) -> None:
    unique = stream.stream_id
    (result,) = kafka.admin().delete_records([TopicPartition(unique, 0, 60)]).values()
    result.result()
    _, fed = feeding(wish(cluster, stream, timeout_s=8))
    fed.begin({(unique, 0): 10, (unique, 1): 0, (unique, 2): 0})
    assert sum(len(batch.y) for batch in fed) == N - 60
    assert fed.lost == 50
    fed.close()


def test_what_a_model_was_trained_on_comes_first_as_far_as_retention_left_it(
    cluster: KafkaCluster, kafka: Kafka, stream: Announcement, feeding: Any
) -> None:
    """The topic is the live one, too: each record is either of the past or live."""
    topic = stream.stream_id
    past = stream.model_copy(update={"slices": [f"{topic}:0:10:200", f"{topic}:1:0:300"], "count": 500})
    wished = wish(cluster, stream, timeout_s=3) | {"past": {"stream": past.model_dump(), "most": 2000}}
    (result,) = kafka.admin().delete_records([TopicPartition(topic, 0, 60)]).values()
    result.result()
    ends = {(topic, 0): 210, (topic, 1): 250, (topic, 2): 100}
    _, fed = feeding(wished)
    fed.begin(ends, 400)
    handed = np.concatenate([batch.x[:, 0] for batch in fed.past()]).astype(int) // 2
    assert sorted(handed) == sorted([*range(180, 630, 3), *range(1, 751, 3)])
    assert fed.found == {"records": 450, "gone": 50, "read": 400, "bad": 0, "reason": None}
    live = np.concatenate([batch.x[:, 0] for batch in fed]).astype(int) // 2
    assert len(live) == N - 560 and fed.lost == 0 and not set(live) & set(handed)
    fed.close()
    _, sampled = feeding(wished)
    sampled.begin(ends, 90)
    few = np.concatenate([batch.x[:, 0] for batch in sampled.past()]).astype(int) // 2
    assert len(few) == len(set(few)) == 90 and set(few) < set(handed)
    sampled.close()


def test_kafka_that_is_away_for_a_while_is_waited_for(unique: str, feeding: Any) -> None:
    """Nor is a stream over because nothing comes from a Kafka that is not there."""
    with Kafka() as own:
        cluster = KafkaCluster(bootstrap=own.bootstrap)
        stream = sent(cluster, unique, range(N // 2))
        _, fed = feeding(wish(cluster, stream, timeout_s=4))
        fed.begin({})
        seen: list[float] = []
        killed = False
        for batch in fed:
            seen += batch.x[:, 0].tolist()
            if len(seen) == N // 2 and not killed:
                own.kill()
                began = time.monotonic()
                while time.monotonic() < began + 8:  # longer than the timeout: the feed goes on handing out nothing
                    assert not len(next(iter(fed)).y)
                own.start()
                sent(cluster, unique, range(N // 2, N))
                killed = True
        assert sorted(seen) == X[:, 0].tolist(), "each once"
        fed.close()
