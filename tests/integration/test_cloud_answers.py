"""Who may ask for which answers, and what is told: whole predictions, final ones, no more than a message holds."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cloud.database import writing
from cloud.projection import Rows, write
from cloud.settings import CloudSettings
from sluice.doors.kafka import KafkaCluster, Record
from sluice.wire import messages, names
from sluice.wire.answers import ASK_MOST
from sluice.wire.messages import Prediction
from tests.integration.cloud_support import Running, running
from tests.unit.wire_support import EPOCH, prediction


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Running]:
    nowhere = KafkaCluster(bootstrap="127.0.0.1:9")
    with running(CloudSettings(data=tmp_path / "data", kafka=nowhere, port=0), tmp_path) as plane:
        yield plane


def bring_in(plane: Running, *predictions: Prediction) -> None:
    """What the results writer does with records."""
    rows = Rows()
    for offset, one in enumerate(predictions):
        rows.take(Record(names.PREDICTIONS, 0, offset, one.device_id.encode(), messages.encode(one), 1, []))
    with writing(plane.service.engine) as connection:
        write(connection, rows)


def test_a_device_is_given_its_own_final_predictions_whole(plane: Running) -> None:
    whole = prediction(
        seq=1, source_id="frame-1", outputs=b"\1\2\3\4" * 3, trace="00-ab-cd-01", compute_us={"edge": 3, "fog": 9}
    )
    first, later = prediction(seq=3, label=1), prediction(seq=3, label=2)
    others = prediction(seq=4, device_id="pi-2"), prediction(seq=5, epoch="11" * 8)
    bring_in(plane, whole, prediction(seq=2, status="provisional"), first, later, *others)
    own = plane.client.add_device("pi-1")["token"]
    seqs = [1, 2, 3, 4, 5, 6]
    body = {"epoch": EPOCH, "seqs": seqs}
    with httpx.Client(base_url=plane.url) as http:
        device = {"Authorization": f"Bearer {own}"}
        assert http.post("/v1/devices/pi-1/answers", json=body, headers=device).status_code == 200
        plane.problem(http.post("/v1/devices/pi-2/answers", json=body, headers=device), 403)
        plane.problem(http.post("/v1/devices/pi-1/answers", json=body), 401)
        for bad in ({}, {"epoch": "x", "seqs": [1]}, {"epoch": EPOCH, "seqs": list(range(ASK_MOST + 1))}):
            plane.problem(http.post("/v1/devices/pi-1/answers", json=bad, headers=device), 422)
        plane.problem(
            http.post("/v1/devices/pi-1/answers", json={"epoch": EPOCH, "seqs": [2**63]}, headers=device), 422
        )
    assert plane.client.answers("pi-1", EPOCH, seqs) == [whole, first]
    assert [p.seq for p in plane.client.answers("pi-2", EPOCH, [4])] == [4]


def test_what_is_told_fits_into_a_message_and_the_rest_is_told_when_it_is_asked_again(plane: Running) -> None:
    large = [prediction(seq=seq, outputs=bytes(400_000)) for seq in range(5)]
    bring_in(plane, *large)
    wanted, rounds = list(range(5)), 0
    while wanted:
        told = [p.seq for p in plane.client.answers("pi-1", EPOCH, wanted)]
        assert told
        wanted = [seq for seq in wanted if seq not in told]
        rounds += 1
    assert rounds == 3
