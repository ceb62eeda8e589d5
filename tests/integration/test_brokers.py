"""The servers do what tests of delivery rely on: what they acknowledged outlives a `kill -9`."""

import threading

import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto, moved
from tests.brokers.postgres import Postgres

pytestmark = pytest.mark.brokers

WAIT_S = 60.0


def connect(server: Mosquitto, client_id: str) -> mqtt.Client:
    """A connected client with a session that outlives its connection, its network loop running.

    No clean start, not even the first time (paho's default): Mosquitto 2.0 never saves a session that began
    with one, whatever its expiry, and after a crash it is gone with all that was queued for it.
    """
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(50)
    up = threading.Event()
    client.on_connect = lambda *_: up.set()
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 3600
    client.connect(server.host, server.port, clean_start=False, properties=properties)
    client.loop_start()
    assert up.wait(WAIT_S)
    return client


def disconnect(client: mqtt.Client) -> None:
    client.disconnect()
    client.loop_stop()


def test_messages_queued_for_an_absent_client_outlive_a_killed_mosquitto(unique: str) -> None:
    count = 500
    topic = f"t/{unique}"
    with Mosquitto() as server:
        absent = connect(server, f"absent-{unique}")
        subscribed = threading.Event()
        absent.on_subscribe = lambda *_: subscribed.set()
        absent.subscribe(topic, qos=1)
        assert subscribed.wait(WAIT_S)
        disconnect(absent)

        publisher = connect(server, f"publisher-{unique}")
        sent = [publisher.publish(topic, str(number), qos=1) for number in range(count)]
        for message in sent:
            message.wait_for_publish(WAIT_S)
        assert all(message.is_published() for message in sent)
        # Mosquitto saves once it has handled what came in, just after it acknowledged it. Once another client
        # was let in, the round of the last acknowledgement is over and saved.
        disconnect(connect(server, f"probe-{unique}"))
        server.kill()
        disconnect(publisher)
        server.start()

        received: list[int] = []
        complete = threading.Event()

        def on_message(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
            received.append(int(message.payload))
            if len(set(received)) == count:
                complete.set()

        back = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"absent-{unique}", protocol=mqtt.MQTTv5)
        back.on_message = on_message
        back.connect(server.host, server.port, clean_start=False)
        back.loop_start()
        arrived = complete.wait(WAIT_S)
        disconnect(back)
    assert arrived, f"{len(set(received))} of {count} messages came back"
    assert received == list(range(count))


def test_a_moved_configuration_must_hold_what_it_replaces() -> None:
    assert moved("a 1\nb 2\n", {"a": "3"}) == "a 3\nb 2"
    with pytest.raises(ValueError, match="c stands 0 times"):
        moved("a 1\n", {"c": "3"})


def test_acknowledged_records_outlive_a_killed_kafka(unique: str) -> None:
    count = 1000
    with Kafka() as server:
        topic = server.create_topic(f"kept-{unique}", partitions=3)
        producer = Producer({"bootstrap.servers": server.bootstrap, "acks": "all", "log_level": 0})
        errors: list[object] = []
        for number in range(count):
            producer.produce(
                topic, str(number), on_delivery=lambda error, _record: errors.append(error) if error else None
            )
        assert producer.flush(WAIT_S) == 0
        assert errors == []
        port = server.port
        server.restart()
        assert server.port == port

        consumer = Consumer(
            {
                "bootstrap.servers": server.bootstrap,
                "group.id": unique,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": False,
                "log_level": 0,
            }
        )
        consumer.subscribe([topic])
        values: list[int] = []
        while len(values) < count:
            record = consumer.poll(WAIT_S)
            assert record is not None, f"{len(values)} of {count} records are there"
            assert record.error() is None, record.error()
            value = record.value()
            assert value is not None
            values.append(int(value))
        consumer.close()
    assert sorted(values) == list(range(count))


def test_kafka_makes_no_topic_by_itself(kafka: Kafka, unique: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    kafka.create_topic(f"made-{unique}", partitions=2)
    admin.list_topics(f"misspelt-{unique}", timeout=WAIT_S)
    topics = admin.list_topics(timeout=WAIT_S).topics
    assert len(topics[f"made-{unique}"].partitions) == 2
    assert f"misspelt-{unique}" not in topics


def plain(url: str) -> str:
    """The URL as psycopg itself takes it, without the name of SQLAlchemy's driver."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def test_postgres_makes_a_database(postgres: Postgres, unique: str) -> None:
    with psycopg.connect(plain(postgres.database(unique))) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (unique,)


def test_committed_rows_outlive_a_killed_postgres() -> None:
    with Postgres() as server:
        with psycopg.connect(plain(server.url)) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept SELECT generate_series(1, 100)")
        with psycopg.connect(plain(server.url)):  # a client that is there when it happens
            server.restart()
        with psycopg.connect(plain(server.url)) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (100,)
