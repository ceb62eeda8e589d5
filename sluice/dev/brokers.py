"""The embedded brokers: amqtt for MQTT, librdkafka's mock cluster for Kafka. For the demo and for trying things.

Neither keeps what a real broker keeps: never measure delivery on them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

from sluice.daemon.life import READY
from sluice.doors.kafka_topics import EmbeddedKafka

log = logging.getLogger(__name__)


class _Steady(dict[str, Any]):
    """A dict that may grow while somebody walks over it.

    amqtt 0.12 walks over its subscriptions with pauses in between; a client that connects while another subscribes
    then stays connected but is served no more.
    """

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().__iter__()))

    def items(self) -> Any:
        """A list of the items as they are now."""
        return list(super().items())


def run_mqtt(port: int, stop: threading.Event) -> None:
    """Serve MQTT 3.1.1 on loopback until `stop` is set; anyone may connect, so loopback is all it listens on."""
    from amqtt.broker import Broker

    for noisy in ("amqtt", "transitions"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    async def serve() -> None:
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        broker._subscriptions = _Steady()
        await broker.start()
        log.info(READY, extra={"host": "127.0.0.1", "port": port})
        await asyncio.to_thread(stop.wait)
        await broker.shutdown()

    asyncio.run(serve())


def run_kafka(stop: threading.Event) -> None:
    """Serve the mock cluster on loopback until `stop` is set."""
    cluster = EmbeddedKafka()
    log.info(READY, extra={"bootstrap": cluster.bootstrap})
    stop.wait()
