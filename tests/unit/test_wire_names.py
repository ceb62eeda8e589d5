"""Names can stand anywhere unquoted; topics are made from them and taken apart again."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sluice.wire import names
from sluice.wire.errors import PermanentError
from sluice.wire.names import MqttTopics, Name, check_name, is_name, offload_prefix, offload_topic
from tests.unit.wire_support import patient

GOOD = ["a", "0", "pi-1", "a-", "a" * 63]
BAD = ["", "-a", "A", "a" * 64, "a_b", "a.b", "a/b", "a+", "#", "a\n", "\na", "a b", "ä", "٣", "a\0", ".."]


def test_what_is_a_name() -> None:
    for name in GOOD:
        assert is_name(name) and check_name("device", name) == name
        assert TypeAdapter(Name).validate_python(name) == name


@pytest.mark.parametrize("name", BAD)
def test_what_is_none(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(PermanentError, match=r"^device name .*: use 1 to 63 of a-z") as refused:
        check_name("device", name)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)


@patient
@given(st.text(max_size=70))
def test_both_checks_are_the_same(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        assert not is_name(name)
    else:
        assert is_name(name)


def test_a_long_name_does_not_fill_the_screen() -> None:
    with pytest.raises(PermanentError) as refused:
        check_name("device", "x" * 10_000)
    assert len(str(refused.value)) < 200


def test_kafka_topics() -> None:
    assert offload_topic("fog", "digits") == "sluice.offload.fog.digits"
    assert offload_topic("fog", "digits").removeprefix(offload_prefix("fog")) == "digits"
    assert not offload_topic("cloud", "digits").startswith(offload_prefix("fog"))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,249}", offload_topic("cloud", name)) for name in GOOD)


@pytest.mark.parametrize("prefix", ["sluice", "site/7"])
@pytest.mark.parametrize("kind", ["offload", "sensor/camera"])
def test_mqtt_topics_are_taken_apart_as_they_were_made(prefix: str, kind: str) -> None:
    topics = MqttTopics(prefix)
    for name in GOOD:
        assert topics.split(topics.of(name, kind)) == (name, kind)
    assert topics.every(kind) == f"{prefix}/+/{kind}"


@pytest.mark.parametrize(
    "topic",
    ["", "sluice", "sluice/pi-1", "sluice//offload", "sluice/Pi/offload", "other/pi-1/offload", "/sluice/pi-1/x"],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    with pytest.raises(PermanentError, match="is not sluice/<device>/<kind>"):
        MqttTopics().split(topic)


def test_what_is_too_long_for_a_name_is_not_remembered() -> None:
    """Names are remembered for speed, and come from anyone: 4096 of 1 MB would be 4 GB."""
    before = names._fits.cache_info().currsize
    for number in range(10):
        assert not names.is_name(f"{number}" + "x" * 1_000_000)
    assert names._fits.cache_info().currsize == before
