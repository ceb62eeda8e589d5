"""Where a setting comes from, and how a wrong one is refused: in one line that names it."""

from pathlib import Path

import pytest
from pydantic import BaseModel, Field, ValidationError

from sluice.daemon.settings import RoomSettings, SettingsConfigDict, load
from sluice.wire.errors import PermanentError


class Broker(BaseModel):
    host: str = "localhost"
    port: int = Field(default=1883, ge=1)


class BarnSettings(RoomSettings):
    """A room that is made up."""

    model_config = SettingsConfigDict(env_prefix="BARN_", env_nested_delimiter="__")

    animal: str = "cow"
    """Who lives there."""
    stalls: int = Field(default=4, ge=1)
    """How many."""
    foods: list[str] = Field(default=[])
    """What they eat."""
    broker: Broker = Broker()
    """Whom they talk to."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "barn.toml"


def test_file_below_environment_below_command_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(BarnSettings).animal == "cow"
    file.write_text('animal = "horse"\nstalls = 5\nfoods = ["hay"]\n[broker]\nhost = "file"\nport = 5\n')
    settings = load(BarnSettings, file)
    assert (settings.animal, settings.stalls, settings.foods) == ("horse", 5, ["hay"])
    monkeypatch.setenv("BARN_ANIMAL", "goat")
    monkeypatch.setenv("BARN_FOODS", '["grass", "oats"]')
    monkeypatch.setenv("BARN_BROKER__HOST", "environment")
    settings = load(BarnSettings, file)
    assert (settings.animal, settings.stalls, settings.foods) == ("goat", 5, ["grass", "oats"])
    assert settings.broker == Broker(host="environment", port=5), "one half each"
    settings = load(BarnSettings, file, animal="sheep", stalls=None)
    assert (settings.animal, settings.stalls) == ("sheep", 5), "None was not said"


def test_one_files_values_are_not_the_next_ones(file: Path) -> None:
    file.write_text('animal = "horse"\n')
    assert load(BarnSettings, file).animal == "horse"
    assert load(BarnSettings).animal == BarnSettings().animal == "cow"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(BarnSettings).animal = "cat"  # type: ignore[misc]


def refusal(file: Path | None, **given: object) -> str:
    with pytest.raises(PermanentError) as refused:
        load(BarnSettings, file, **given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("stalls = 0", "setting BARN_stalls: Input should be greater than"),
        ('stalls = "many"', "setting BARN_stalls: "),
        ("[broker]\nport = 0", "setting BARN_broker.port: "),
        ('log_level = "LOUD"', "setting BARN_log_level: use one of DEBUG, INFO, WARNING, ERROR"),
        ("colour = 1", "setting BARN_colour: Extra inputs are not permitted"),
        ("animal = ", "settings file "),
        ("animal = 1\nanimal = 2", "settings file "),
    ],
)
def test_a_wrong_value_in_the_file_is_named(file: Path, text: str, named: str) -> None:
    file.write_text(text)
    assert refusal(file).startswith(named)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("BARN_STALLS", "many", "BARN_stalls"),
        ("BARN_BROKER__PORT", "0", "BARN_broker.port"),
        ("BARN_FOODS", "hay", '"foods"'),
        ("BARN_BROKER", "{", '"broker"'),
    ],
)
def test_a_wrong_value_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    monkeypatch.setenv(name, value)
    assert named in refusal(None)


def test_a_wrong_value_on_the_command_line_is_named() -> None:
    assert refusal(None, stalls=0).startswith("setting BARN_stalls: ")


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert refusal(file).startswith(f"settings file {file}: ")
    file.write_bytes(b'animal = "\xff"')
    assert refusal(file).startswith(f"settings file {file}: ")


def test_a_secret_is_not_repeated_in_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARN_STALLS", "hunter2")
    assert "hunter2" not in refusal(None)


def test_a_level_may_be_written_small() -> None:
    assert load(BarnSettings, log_level="warning").log_level == "WARNING"
