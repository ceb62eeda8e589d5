"""Kafka's transactions: outcomes and the offsets of what they were made of, together or not at all.

librdkafka's calls are told how long to wait, and one of them may not return all the same:
`send_offsets_to_transaction`, when the group's coordinator left the cluster's metadata for a while, as a broker does
that is restarted (librdkafka issue 5511). Nobody can call it back, so a call that outlasts its transaction ends the
process (`sluice/daemon/guard.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import confluent_kafka as ck

from sluice.daemon.guard import Guard
from sluice.doors.kafka import KafkaCluster, KafkaWriter, TopicPartition
from sluice.wire.errors import TemporaryError


class TransactionFailedError(Exception):
    """The transaction cannot be committed any more: `abort` it, and do everything in it again."""


class FencedError(RuntimeError):
    """Kafka takes nothing more from this client: another one has its id, or a transaction was ended for its age."""


OVERTIME_S = 5.0
"""A call that does not return so long after the end of its transaction never will."""


class KafkaTransactions(KafkaWriter):
    """A transactional producer: what is written between `begin` and `commit`, and the offsets of a reader, count
    together or not at all.

    `transactional_id` is no other process's; one that stays the same over restarts ends at once what was left open,
    else it ends after `timeout_s`, and until then nobody who reads committed records sees what came after. Each of
    `init`, `commit` and `abort` raises `TemporaryError` when Kafka is away and is then to be called again, before any
    other. Two processes of one id: the older one gets a `FencedError`. One call at a time, from any thread.
    """

    def __init__(self, name: str, cluster: KafkaCluster, transactional_id: str, timeout_s: float) -> None:
        milliseconds = int(1000 * timeout_s)
        options = {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": milliseconds,
            "delivery.timeout.ms": milliseconds,
            "topic.metadata.propagation.max.ms": min(milliseconds // 4, 2000),  # until a topic is taken for missing
            "retry.backoff.ms": 1,  # the transaction before may not be over for the broker yet
            **cluster.options,
        }
        super().__init__(name, cluster, linger_ms=0, options=options)
        self._timeout_s = min(timeout_s, 5.0)
        self._offsets_sent = False
        self._ending: tuple[list[ck.TopicPartition], object] | None = None
        """Offsets and group of a commit that was begun."""
        self._guard = Guard(name, timeout_s + OVERTIME_S)

    def init(self) -> None:
        """Once, before the first `begin`."""
        self._do(self._producer.init_transactions, self._timeout_s)

    def begin(self) -> None:
        """From here on records belong to a transaction."""
        self._do(self._producer.begin_transaction)

    def commit(self, offsets: Mapping[TopicPartition, int], group: object) -> None:
        """End it with the next offsets of a `KafkaReader`'s `group`; `TransactionFailedError`: nothing of it counts.

        Called again after a `TemporaryError` it ends what it began to end, whatever the arguments.
        """
        if self._ending is None:
            self._ending = [ck.TopicPartition(t, p, o) for (t, p), o in offsets.items()], group
            self._offsets_sent = not offsets
        try:
            if not self._offsets_sent:
                self._do(self._producer.send_offsets_to_transaction, *self._ending, self._timeout_s)
                self._offsets_sent = True
            self._do(self._producer.commit_transaction, self._timeout_s)
        except TransactionFailedError:
            self._ending = None
            raise
        self._ending = None

    def abort(self) -> None:
        """Nothing of it counts. Not after a `commit` that is still to be called again."""
        self._do(self._producer.abort_transaction, self._timeout_s)

    def renew(self) -> None:
        """When Kafka has ended a transaction because of its age, which is the end of the client: as if just made."""
        with self._guard:
            self._producer = ck.Producer(self._config)
        self._ending = None

    def _refusal(self, error: ck.KafkaError, topic: str) -> Exception:
        if error.code() != ck.KafkaError._FATAL and (
            error.txn_requires_abort() or error.code() == ck.KafkaError._STATE
        ):
            return TransactionFailedError(error.str())
        return super()._refusal(error, topic)

    def _do(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            with self._guard:
                call(*arguments)
        except ck.KafkaException as error:
            reason = error.args[0]
            if reason.fatal():
                fenced = reason.code() == ck.KafkaError._FENCED
                raise (FencedError if fenced else RuntimeError)(f"{self.name}: Kafka: {reason.str()}") from error
            if reason.txn_requires_abort():
                raise TransactionFailedError(reason.str()) from error
            if reason.retriable() or reason.code() == ck.KafkaError._TIMED_OUT:
                raise TemporaryError(f"{self.name}: transaction: {reason.str()}") from error
            raise RuntimeError(f"{self.name}: transaction: {reason.str()}") from error
