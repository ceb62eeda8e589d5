"""The agent's settings: what cannot work, or contradicts itself, is refused by its name."""

from typing import Any

import pytest
from pydantic import ValidationError

from edge_agent.settings import EdgeSettings
from sluice.wire.manifest import first_cause
from tests.unit.edge_stand_ins import KEY


def refused(**given: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        EdgeSettings(device_id="d", public_keys=[KEY], **given)
    return first_cause(caught.value)


def made(**given: Any) -> EdgeSettings:
    return EdgeSettings(device_id="d", public_keys=[KEY], **given)


@pytest.mark.parametrize(
    "url", ["nonsense", "cloud.example:8080", "http://cloud:80a", "ftp://cloud", "http://", "http://a b"]
)
def test_where_the_control_plane_is_has_to_be_an_address(url: str) -> None:
    assert refused(cloud_url=url) == "cloud_url: use http://HOST:PORT or https://HOST:PORT"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "https://cloud.example", "http://[::1]:80/sluice/"])
def test_addresses(url: str) -> None:
    assert made(cloud_url=url).cloud_url == url


def test_a_token_fits_into_a_header() -> None:
    assert made(token="abc\n").token == "abc", "as it was read from a file"
    assert refused(token="to ken").startswith("token: ")
    assert refused(token="t\u00f6ken").startswith("token: ")


@pytest.mark.parametrize(
    ("name", "value"), [("keepalive_s", 70_000), ("session_expiry_s", -1), ("session_expiry_s", 2**32), ("host", "")]
)
def test_brokers_take_only_so_much(name: str, value: object) -> None:
    assert refused(sensor_broker={name: value}).startswith(f"sensor_broker.{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message_limit_bytes", -5),
        ("topic_prefix", ""),
        ("topic_prefix", "a/+"),
        ("topic_prefix", "#"),
        ("topic_prefix", "a/"),
        ("predictions_by_model", {"Bad Name": {}}),
        ("uplink_in_flight", 70_000),
    ],
)
def test_what_cannot_be_is_refused(name: str, value: object) -> None:
    assert refused(**{name: value}).startswith(name)


def test_a_prefix_may_have_levels() -> None:
    assert made(topic_prefix="plant-1/sluice").topic_prefix == "plant-1/sluice"


def test_times_that_contradict_one_another_are_refused() -> None:
    assert "commit_interval_s is over sample_ttl_s" in refused(commit_interval_s=60, sample_ttl_s=5)
    assert "answer_timeout_s is over sample_ttl_s" in refused(answer_timeout_s=100, sample_ttl_s=10)
    assert made(sample_ttl_s=2).answer_timeout_s == 5, "which nobody asked for"
    assert "outbox_age_s is under sample_ttl_s" in refused(outbox_age_s=10, sample_ttl_s=60)


def test_what_says_nothing_in_a_mode_is_refused_in_it() -> None:
    assert "count says nothing in mode 'each'" in refused(predictions={"count": 5})
    assert "refresh_s says nothing in mode 'batches'" in refused(predictions={"mode": "batches", "refresh_s": 5})
    assert made(predictions={"mode": "changes", "refresh_s": 5}).predictions.refresh_s == 5
