"""What the REST service says of answers afterwards, asked over HTTP; there is no Kafka here."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert

from cloud import tokens
from cloud.app import create_app
from cloud.database import writing
from cloud.service import Service, open_service
from cloud.settings import CloudSettings
from cloud.tables import labels, predictions
from sluice.doors.kafka import KafkaCluster
from tests.unit.test_cloud_accuracy import ANSWERS, GONE, HOUR, KNOWN, LABELS

NOWHERE = "127.0.0.1:1"


class Http:
    """An admin who asks the application, without a socket in between."""

    def __init__(self, app: FastAPI, token: str) -> None:
        self.app, self.headers = app, {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://sluice", headers=self.headers) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    cluster = KafkaCluster(bootstrap=NOWHERE)
    opened = open_service(CloudSettings(data=tmp_path, kafka=cluster, kafka_timeout_s=0.2), threading.Event())
    assert opened is not None
    yield opened
    opened.engine.dispose()


@pytest.fixture
def http(service: Service) -> Http:
    with writing(service.engine) as connection:
        _number, token = tokens.create(connection, "admin", "test")
    return Http(create_app(service), token)


def test_accuracy_stands_with_its_interval(service: Service, http: Http) -> None:
    assert http("GET", "/v1/accuracy").json() == []
    with writing(service.engine) as connection:
        connection.execute(insert(predictions), ANSWERS)
        connection.execute(insert(labels), LABELS)
    found = http("GET", "/v1/accuracy").json()
    # the registry has neither bundle: what was told by name is unknown
    assert [(row["bundle"], row["tier"], row["labelled"], row["right"], row["unknown"]) for row in found] == [
        (KNOWN, "edge", 2, 1, 1),
        (KNOWN, "fog", 2, 0, 1),
        (GONE, "edge", 2, 1, 1),
    ]
    first = found[0]
    assert (first["begin"], first["share"], first["high"]) == (None, 1.0, 1.0)
    assert first["low"] == pytest.approx(0.2065, abs=1e-4)
    hourly = http("GET", "/v1/accuracy", params={"every_s": 3600, "bundle": GONE}).json()
    assert [(row["begin"], row["samples"], row["share"]) for row in hourly] == [(0, 1, 1.0), (HOUR, 1, None)]
    assert http("GET", "/v1/accuracy", params={"until": 1, "tier": "fog"}).json() == []
    assert http("GET", "/v1/accuracy", params={"every_s": 1}).status_code == 422


@pytest.mark.parametrize(
    ("label", "status", "words"),
    [
        ({"device_id": "pi-1", "source_id": "a", "label": 3}, 503, "Kafka"),
        ({"device_id": "pi-1", "source_id": "a"}, 422, "label"),
        ({"device_id": "pi-1", "label": 3}, 422, "name the sample"),
        ({"device_id": "pi-1", "source_id": "a", "label": 3, "told_at": 2**62}, 422, "wrong clock"),
    ],
)
def test_labels_are_written_or_refused(http: Http, label: dict[str, Any], status: int, words: str) -> None:
    answer = http("POST", "/v1/labels", json={"labels": [label]})
    assert answer.status_code == status
    assert words in answer.json()["detail"]
