"""What the REST service says of answers afterwards, asked over HTTP; there is no Kafka here."""

import asyncio
import hashlib
import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, update

from cloud import tokens
from cloud.app import create_app
from cloud.bundles import store_bundle
from cloud.database import writing
from cloud.projection import Rows
from cloud.service import Service, open_service
from cloud.settings import CloudSettings
from cloud.tables import audits, labels, predictions
from cloud.watch.betting import audits_needed
from cloud.watch.watcher import Watcher
from sluice.commands.results import in_words
from sluice.doors.kafka import KafkaCluster, KafkaReader
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.wire import names
from tests.unit.test_cloud_accuracy import ANSWERS, EPOCH, GONE, HOUR, KNOWN, LABELS

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


def test_labels_are_written_to_their_topic(tmp_path: Path) -> None:
    server = EmbeddedKafka()
    cluster = KafkaCluster(bootstrap=server.bootstrap)
    opened = open_service(CloudSettings(data=tmp_path, kafka=cluster), threading.Event())
    assert opened is not None
    told: list[dict[str, Any]] = [
        {"device_id": "pi-1", "source_id": "a", "label": "yes", "told_at": 7},
        {"device_id": "pi-2", "epoch": EPOCH, "seq": 3, "label": 1},
    ]
    with writing(opened.engine) as connection:
        _number, token = tokens.create(connection, "admin", "test")
    answer = Http(create_app(opened), token)("POST", "/v1/labels", json={"labels": told})
    opened.engine.dispose()
    assert (answer.status_code, answer.json()) == (202, {"written": 2})
    reader = KafkaReader("test", cluster, "test")
    reader.assign_all(names.LABELS)
    rows = Rows()
    deadline = time.monotonic() + 20
    while len(rows.labels) < 2 and time.monotonic() < deadline:
        for record in reader.read(10, 0.2):
            rows.take(record)
    reader.close()
    found = sorted((row["device_id"], row["source_id"], row["seq"], row["label"], row["name"]) for row in rows.labels)
    assert found == [("pi-1", "a", -1, -1, "yes"), ("pi-2", "", 3, 1, "")]


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


def test_labelled_samples_by_page(service: Service, http: Http) -> None:
    with writing(service.engine) as connection:
        connection.execute(insert(predictions), ANSWERS)
        connection.execute(insert(labels), LABELS)
    first = http("GET", "/v1/labels", params={"limit": 4}).json()
    second = http("GET", "/v1/labels", params={"after": first["next"]}).json()
    rows = first["labels"] + second["labels"]
    assert [(row["seq"], row["label"], row["told"], row["right"]) for row in rows] == [
        (0, 0, 0, True),
        (1, 1, None, None),  # told by name, and the registry does not have the bundle
        (3, 0, None, None),
        (4, 1, 2, False),
        (5, 0, None, None),
        (6, 1, 1, True),
    ]
    assert http("GET", "/v1/labels", params={"after": second["next"]}).json() == {"labels": [], "next": second["next"]}


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


def a_bundle(
    service: Service, criterion: str = "agreement", points: int = 1, tiers: tuple[str, ...] = ("edge", "cloud")
) -> str:
    """A bundle with an exit on each tier; what its segments hold is nobody's business here."""
    data = b"a segment"
    blob = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    tensor = {"dtype": "float32", "shape": [4], "scale": 0.1, "zero_point": 0}
    crossing = [[tensor | {"name": f"h{index}"}] for index in range(len(tiers) - 1)]
    image = {"name": "image", "dtype": "float32", "shape": [8, 8]}

    def segment(index: int, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
        place = {"index": index, "file": blob, "golden": blob, "inputs": inputs, "outputs": outputs}
        return place | {"exit": {"name": f"e{index}", "logits": "l"}, "macs": 1, "tolerance": 0.1}

    policy = {"measure": "max_prob", "threshold": 0.9}
    promise = {"method": "m", "criterion": criterion, "epsilon": 0.01, "delta": 0.05, "n": 900, "violations": 2}
    point = {"placement": list(tiers), "codec": "raw", "policies": [policy] * len(tiers)}
    inputs: list[list[Any]] = [[image], *crossing]
    manifest = {
        "model": "digits",
        "version": 1,
        "labels": ["no", "yes"],
        "inputs": [image],
        "segments": [segment(index, *kind) for index, kind in enumerate(zip(inputs, [*crossing, []], strict=True))],
        "operating_points": [
            point | {"id": "default", "certificate": promise | {"points": points}},
            point | {"id": "unsure"},
        ],
        "provenance": {"created_at": "2026-11-20"},
    }
    record = store_bundle(service, json.dumps(manifest).encode(), lambda _digest: io.BytesIO(data))
    with writing(service.engine) as connection:
        return record(connection)


def live(
    service: Service,
    digest: str,
    harmed: list[bool],
    final: int = 0,
    elsewhere: int = 0,
    begin: int = 0,
    fog: list[bool] | None = None,
) -> None:
    """A hundred early answers for each audit, an audit a minute; `final` and `elsewhere` (fog's) spread over them;
    `fog`: whether what its audits say is harmed, as many and as often."""
    same = {"device_id": "pi-1", "epoch": EPOCH, "model": "digits", "bundle": digest, "operating_point": "default"}
    how = {"confidence": 0.9, "status": "final", "captured_at": 1, "produced_at": 2, "records": 1, "repeats": 0}
    how |= {"compute_us": {}, "bytes_sent": 0, "label": 0}
    kinds = [(100 * len(harmed), "edge", 0, "exit"), (final, "cloud", 1, "last"), (elsewhere, "fog", 0, "exit")]
    length = 60_000_000 * len(harmed)
    answers = [
        same | how | {"tier": tier, "exit": exit_, "reason": reason, "recorded_at": begin + length * i // count}
        for count, tier, exit_, reason in kinds
        for i in range(count)
    ]
    for seq, answer in enumerate(answers):
        answer["seq"] = begin + seq
    said = {"exit": 0, "label": 0, "final_exit": 1, "final_confidence": 0.9, "records": 1}
    found = [
        same | said | {"seq": first + i, "exit": e, "final_label": int(w), "recorded_at": begin + 60_000_000 * (i + 1)}
        for e, first, audited in ((0, begin, harmed), (1, begin + 100 * len(harmed) + final, fog or []))
        for i, w in enumerate(audited)
    ]
    with writing(service.engine) as connection:
        connection.execute(insert(predictions), answers)
        connection.execute(insert(audits), found)


def the_certificate(http: Http, digest: str) -> dict[str, Any]:
    (found,) = http("GET", f"/v1/bundles/{digest}/certificate").json()
    assert found["operating_point"] == "default"
    return dict(found)


CLEAN = audits_needed(0.01, 0.05)


def test_a_promise_is_shown_to_hold_by_enough_audits(service: Service, http: Http) -> None:
    digest = a_bundle(service)
    assert the_certificate(http, digest)["state"] == "too few audits"
    assert http("GET", "/v1/certificates").json() == []  # there are no audits at all
    live(service, digest, [False] * (CLEAN - 1))
    assert the_certificate(http, digest)["state"] == "too few audits"
    live(service, digest, [False], begin=10**12)
    found = the_certificate(http, digest)
    assert (found["state"], found["since"], found["audits"], found["harmed"]) == (
        "holds",
        10**12 + 60_000_000,
        CLEAN,
        0,
    )
    assert found["wealth"] < 1 < found["wealth_needed"] == 20
    assert http("GET", "/v1/certificates").json() == [found]
    assert http("GET", "/v1/certificates", params={"model": "other"}).json() == []


def test_samples_that_went_up_speak_for_it_and_early_answers_elsewhere_against(service: Service, http: Http) -> None:
    digest = a_bundle(service)
    live(service, digest, [False] * (CLEAN // 2), final=60 * CLEAN)
    live(service, digest, [False], begin=10**12)  # a day later: what went up in that hour is over
    assert the_certificate(http, digest)["state"] == "holds"
    live(service, digest, [False], elsewhere=10 * CLEAN, begin=2 * 10**12)
    second = a_bundle(service, points=2)
    live(service, second, [False] * 2 * CLEAN, elsewhere=10 * CLEAN, begin=3 * 10**12)  # 5 % that nobody audits
    assert the_certificate(http, second)["state"] == "too few audits"


THREE = ("edge", "fog", "cloud")


def test_what_the_fog_answers_and_audits_counts_as_what_the_device_does(service: Service, http: Http) -> None:
    holds = a_bundle(service, tiers=THREE)
    live(service, holds, [False] * CLEAN, elsewhere=100 * CLEAN, fog=[False] * CLEAN)
    found = the_certificate(http, holds)
    assert (found["state"], found["audits"]) == ("holds", 2 * CLEAN)
    broken = a_bundle(service, points=2, tiers=THREE)
    live(service, broken, [False] * 200, elsewhere=20_000, begin=10**12, fog=[i % 10 == 9 for i in range(200)])
    found = the_certificate(http, broken)
    assert (found["state"], found["harmed"]) == ("does not hold", 20)


def test_of_a_fog_that_audits_less_the_rest_is_unseen(service: Service, http: Http) -> None:
    """It says that all is well of a tenth of what a device would: the others may be harmed, for all that is known."""
    digest = a_bundle(service, tiers=THREE)
    live(service, digest, [False] * 2 * CLEAN, elsewhere=100 * 2 * CLEAN, fog=[False] * (CLEAN // 5))
    assert the_certificate(http, digest)["state"] == "too few audits"


def test_an_audit_of_an_exit_that_is_not_there_is_left_out(service: Service, http: Http) -> None:
    digest = a_bundle(service)
    live(service, digest, [False] * 10, fog=[])
    with writing(service.engine) as connection:
        connection.execute(update(audits).where(audits.c.seq == 3).values(exit=7))
    assert the_certificate(http, digest)["audits"] == 9


def test_a_promise_that_is_broken_is_told_once(service: Service, http: Http, caplog: pytest.LogCaptureFixture) -> None:
    digest = a_bundle(service)
    live(service, digest, [i % 10 == 9 for i in range(200)])  # one in ten
    found = the_certificate(http, digest)
    assert (found["state"], found["harmed"]) == ("does not hold", 20)
    assert 60_000_000 <= found["since"] <= 100 * 60_000_000
    assert found["wealth_most"] >= found["wealth"] > found["wealth_needed"]
    words = in_words(found)
    assert words.startswith(f"bundle {digest[:12]}… at default DOES NOT KEEP its promise to harm at most 1.00%")
    assert "1970-01-01 0" in words
    watcher = Watcher(service)
    with caplog.at_level(logging.WARNING):
        watcher.look()
        live(service, digest, [False], begin=10**12)
        watcher.look()
    told = [entry.getMessage() for entry in caplog.records if "promise" in entry.getMessage()]
    assert told == [
        f"bundle {digest[:12]}… at default does not keep its promise of 0.01: "
        "20 of 200 audits disagree with the final exit"
    ]


def test_the_same_disagreement_is_no_harm_if_few_answers_are_early(service: Service, http: Http) -> None:
    """One in ten early answers, and one early answer in twenty: half a per cent of the samples."""
    digest = a_bundle(service)
    live(service, digest, [i % 10 == 9 for i in range(50)], final=19 * 5000)  # 19 of 20 go up
    assert the_certificate(http, digest)["state"] != "does not hold"


def test_a_promise_of_accuracy_needs_labels_to_be_broken(service: Service, http: Http) -> None:
    digest = a_bundle(service, criterion="accuracy")
    live(service, digest, [i % 10 == 9 for i in range(200)])
    assert the_certificate(http, digest)["state"] == "too few audits"
    told = {"device_id": "pi-1", "epoch": EPOCH, "source_id": "", "model": "", "label": -1, "name": "yes"}
    told |= {"told_at": 1, "recorded_at": 1, "records": 1, "repeats": 0}
    with writing(service.engine) as connection:  # the final exit was right in all that it said otherwise
        connection.execute(insert(labels), [told | {"seq": seq} for seq in range(9, 200, 10)])
    assert the_certificate(http, digest)["state"] == "does not hold"
