"""Kafka's topics: made where they are missing; and the embedded cluster for the demo. Neighbour: `kafka.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from sluice.doors.kafka import KafkaCluster, failure
from sluice.wire.errors import TemporaryError


def ensure_topics(
    cluster: KafkaCluster,
    topics: Mapping[str, int],
    *,
    compacted: Iterable[str] = (),
    replication: int = 1,
    timeout_s: float = 15.0,
) -> None:
    """Make the topics (name: number of topic partitions) that are not there yet.

    Kafka's clock dates their records: a record dated by a writer whose clock is an hour ahead would be refused, and one
    from a clock that is far behind would be old enough for retention to take it.
    Raises `TemporaryError` when Kafka is away, `PermanentError` when it refuses. The embedded cluster has no topic
    administration: there a topic is made by asking for it, with the cluster's own number of topic partitions.
    """
    admin = AdminClient(cluster.config("admin"))
    try:
        there = admin.list_topics(timeout=timeout_s)
        missing = {name: count for name, count in topics.items() if name not in there.topics}
        if not missing:
            return
        if (there.cluster_id or "").startswith("mockCluster"):
            for name in missing:
                admin.list_topics(name, timeout=timeout_s)
            return
        squeezed = set(compacted)
        wanted = [
            NewTopic(
                name,
                num_partitions=count,
                replication_factor=replication,
                config={"message.timestamp.type": "LogAppendTime"}
                | ({"cleanup.policy": "compact"} if name in squeezed else {}),
            )
            for name, count in missing.items()
        ]
        for name, future in admin.create_topics(wanted, request_timeout=timeout_s).items():
            try:
                future.result()
            except ck.KafkaException as error:
                if error.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise failure(error.args[0], name) from error
    except ck.KafkaException as error:
        raise TemporaryError(f"Kafka at {cluster.bootstrap}: {error.args[0].str()}") from error


class EmbeddedKafka:
    """librdkafka's mock cluster on loopback, alive as long as this object: for the demo and fast tests only.

    It keeps at most 5 MiB or 100 000 records a topic partition and drops older ones without an error; it has no
    transactions and no topic administration. Never measure delivery on it.
    """

    def __init__(self) -> None:
        self._producer = ck.Producer({"test.mock.num.brokers": 1, "log_level": 0})
        broker = next(iter(self._producer.list_topics(timeout=10).brokers.values()))
        self.bootstrap = f"{broker.host}:{broker.port}"
