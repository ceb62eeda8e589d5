"""What a model was trained on, handed to a job before its live stream: a fair sample, once, of what is still there."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.streams.fed import Fed
from sluice.streams.feed import Wish, serve
from sluice.streams.past import BLOCKS, chosen
from sluice.streams.reader import Batch
from sluice.wire.slices import Slice, merged, parse_slice
from sluice.wire.state import Announcement

N = 600
CONFIG = {"shape": [2], "dtype": "float32"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """Record i of topics `known` and `live`, one topic partition each, is the sample (i, i) of class i % 3."""
    server = EmbeddedKafka()
    found = KafkaCluster(bootstrap=server.bootstrap)
    writer = KafkaWriter("test", found)
    for i in range(N):
        for topic in ("known", "live"):
            writer.write(topic, np.full(2, i, np.float32).tobytes(), key=str(i % 3), partition=0)
    writer.write("known", b"half", key="0", partition=0)
    assert writer.flush(30) == 0
    yield found
    del server


def announced(stream_id: str, *slices: str, config: dict[str, Any] | None = None) -> Announcement:
    said = {"stream_id": stream_id, "slices": slices, "format": "raw", "validation_rate": 0, "config": config or CONFIG}
    return Announcement.model_validate(said | {"count": sum(parse_slice(text).length for text in slices)})


def handed(
    cluster: KafkaCluster,
    past: Announcement | None,
    asked: int | None,
    begin: dict[tuple[str, int], int] | None = None,
    most: int = 1000,
    whole: bool = True,
    **live: Any,
) -> tuple[list[float], dict[str, Any], list[Batch]]:
    """(the samples of the past, what was told of it, the batches of the live stream) that a job is handed."""
    wish = {"kafka": cluster.model_dump(), "stream": announced("live", "live:0:0:0").model_dump()}
    wish["live"] = {
        "topics": ["live"],
        "group": f"g-{np.random.default_rng().integers(2**60)}",
        "timeout_s": 0.5,
    } | live
    if past is not None:
        wish["past"] = {"stream": past.model_dump(), "most": most, "seed": 3}
    job, own = socket.socketpair()

    def run() -> None:
        with own, own.makefile("wb") as out:
            serve(Wish.model_validate(wish), out, own)

    feeding = threading.Thread(target=run)
    feeding.start()
    fed = Fed(job.detach())
    fed.begin(begin or {}, asked)
    samples = [] if asked is None else [float(x[0]) for batch in fed.past() for x in batch.x]
    batches = list(fed) if whole else []
    fed.close()
    feeding.join()
    return samples, fed.found, batches


def test_the_past_comes_before_the_live_stream_and_is_no_part_of_it(cluster: KafkaCluster) -> None:
    past = announced("known", "known:0:0:200", "known:0:100:200")
    samples, told, live = handed(cluster, past, 1000)
    assert samples == list(range(300)), "a record that two slices hold comes once"
    assert told == {"records": 300, "gone": 0, "read": 300, "bad": 0, "reason": None}
    assert sum(len(batch.y) for batch in live) == N and next(batch.number for batch in live) == 1


def test_a_sample_is_spread_over_the_whole_and_the_same_each_time(cluster: KafkaCluster) -> None:
    past = announced("known", "known:0:0:400", "known:0:500:100")
    samples, told, _ = handed(cluster, past, 80, whole=False)
    assert len(samples) == len(set(samples)) == told["read"] == 80
    assert all(sum(low <= one < low + 100 for one in samples) >= 8 for low in (0, 100, 200, 300, 500))
    assert not any(400 <= one < 500 for one in samples)
    assert handed(cluster, past, 80, whole=False)[0] == samples
    assert len(handed(cluster, past, 10_000_000, most=40, whole=False)[0]) == 40, "what the service grants is the bound"


def test_who_asks_for_nothing_gets_nothing(cluster: KafkaCluster) -> None:
    past = announced("known", "known:0:0:200")
    samples, told, live = handed(cluster, past, None)
    assert (samples, told, sum(len(batch.y) for batch in live)) == ([], {}, N)
    samples, told, live = handed(cluster, past, 0)
    assert (samples, told["records"], sum(len(batch.y) for batch in live)) == ([], 200, N)
    samples, told, live = handed(cluster, None, 50)
    assert (samples, told["records"], sum(len(batch.y) for batch in live)) == ([], 0, N), (
        "of a model that was never trained"
    )


def test_what_comes_live_is_not_of_the_past(cluster: KafkaCluster) -> None:
    past = announced("live", "live:0:0:300")
    samples, told, live = handed(cluster, past, 1000, {("live", 0): 100})
    assert samples == list(range(100)) and told["records"] == 100
    assert sum(len(batch.y) for batch in live) == N - 100
    assert handed(cluster, past, 1000, whole=False)[0] == [], "all of it is read live"
    assert handed(cluster, past, 1000, from_beginning=False, whole=False)[0] == list(range(300)), "and here none"


def test_what_is_not_there_any_more_is_fewer(cluster: KafkaCluster) -> None:
    """What never was and what is no more look the same: offsets that Kafka does not have."""
    samples, told, live = handed(cluster, announced("known", "known:0:500:400"), 1000)
    assert samples == list(range(500, N)) and sum(len(batch.y) for batch in live) == N
    assert (told["records"], told["gone"], told["bad"]) == (400, 299, 1), "and half a record is left out"
    samples, told, live = handed(cluster, announced("known", "known:9:0:50"), 1000)
    assert (samples, told["gone"], sum(len(batch.y) for batch in live)) == ([], 50, N)


def test_samples_of_another_shape_are_not_used(cluster: KafkaCluster) -> None:
    other = announced("known", "known:0:0:100", config={"shape": [8], "dtype": "uint8"})
    samples, told, live = handed(cluster, other, 1000)
    assert samples == [] and "not like those" in told["reason"] and sum(len(batch.y) for batch in live) == N


@pytest.mark.parametrize("most", [1, 7, 8, 9, 100, 2000, 9999])
def test_as_many_as_can_be_are_chosen_and_no_more(most: int) -> None:
    slices = [Slice("a", 0, 5, 3), Slice("a", 1, 0, 4000), Slice("b", 0, 70, 5997)]
    found = chosen(slices, most, 1)
    count = sum(piece.length for piece in found)
    assert most - BLOCKS < count <= most
    assert merged(found) == merged(set(found)) and sum(piece.length for piece in merged(found)) == count, "each once"
    for piece in found:
        assert any(
            (one.topic, one.partition) == (piece.topic, piece.partition)
            and one.offset <= piece.offset
            and piece.end <= one.end
            for one in slices
        )


def test_every_record_is_as_likely_as_any_other() -> None:
    counts = np.zeros(1000)
    for seed in range(2000):
        for piece in chosen([Slice("a", 0, 0, 1000)], 80, seed):
            counts[piece.offset : piece.end] += 1
    by_part = counts.reshape(10, 100).mean(axis=1) / 2000
    assert np.allclose(by_part, 0.08, atol=0.002)


def test_what_the_wish_says_is_json() -> None:
    past = announced("known", "known:0:0:200")
    wish = {
        "kafka": {"bootstrap": "k:1"},
        "stream": past.model_dump(),
        "past": {"stream": past.model_dump(), "most": 5},
    }
    found = Wish.model_validate_json(json.dumps(wish))
    assert found.past is not None and found.past.stream == past
