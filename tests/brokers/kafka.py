"""Apache Kafka as one broker: KRaft, controller and broker in one process, on loopback.

Replication factors are 1, and topics are made by name only, as in production: a misspelt topic is an error.
Groups form without a delay and may use short session timeouts, so that a test that kills a member need not
wait long. The broker's own session is short too: the controller takes a killed broker back only when its old
session is over. Acknowledged records survive `kill()`: they are in the page cache, which only a crash of the
machine loses.
"""

import base64
import uuid
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.brokers import fetch
from tests.brokers.process import HOST, Server, StartError, accepts, free_port

FORMAT_TIMEOUT_S = 60.0

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
num.partitions=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
{extra}
"""

LOG4J2 = """\
status=error
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
"""


class Kafka(Server):
    """A single Kafka broker. `properties` are added to the broker's configuration and override it."""

    start_timeout_s = 120.0

    def __init__(self, folder: Path | None = None, properties: dict[str, str] | None = None) -> None:
        self.java = fetch.java()
        self.jars = fetch.kafka_jars()
        super().__init__(folder)
        self.controller_port = free_port()
        self.bootstrap = f"{HOST}:{self.port}"
        self.properties = properties or {}
        self.config = self.folder / "server.properties"
        self.data = self.folder / "data"
        self._admin: AdminClient | None = None

    def prepare(self) -> None:
        (self.folder / "log4j2.properties").write_text(LOG4J2)
        self.config.write_text(
            PROPERTIES.format(
                host=HOST,
                port=self.port,
                controller_port=self.controller_port,
                data=self.data,
                extra="\n".join(f"{name}={value}" for name, value in self.properties.items()),
            )
        )
        if not (self.data / "meta.properties").exists():
            self._format()

    def command(self) -> list[str]:
        return self._java("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "kafka.Kafka", str(self.config))

    def environment(self) -> dict[str, str]:
        return fetch.Software(()).environment()

    def answers(self) -> bool:
        """Metadata that name the broker: the controller knows it, and topics can be made."""
        if not accepts(self.port):
            return False
        try:
            return len(self.admin().list_topics(timeout=5).brokers) == 1
        except KafkaException:
            return False

    def admin(self) -> AdminClient:
        """A client for topics and groups, one for the life of this server."""
        if self._admin is None:
            self._admin = AdminClient(
                {"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200}
            )
        return self._admin

    def create_topic(self, name: str, partitions: int = 1, config: dict[str, str] | None = None) -> str:
        """Makes a topic and returns its name when it is there."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config or {})
        self.admin().create_topics([topic], operation_timeout=30)[name].result(timeout=60)
        return name

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        format_storage = self._java(
            "-XX:TieredStopAtLevel=1",
            "kafka.tools.StorageTool",
            *("format", f"--cluster-id={cluster}", "--config", str(self.config)),
        )
        if self.launch(format_storage).wait(FORMAT_TIMEOUT_S) != 0:
            raise StartError(f"Kafka could not format its storage:\n{self.log_tail()}")

    def _java(self, *arguments: str) -> list[str]:
        return [
            self.java,
            "-Djava.awt.headless=true",
            "-XX:-UsePerfData",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            *("-cp", f"{self.jars}/*"),
            *arguments,
        ]
