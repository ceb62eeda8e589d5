"""Where a setting comes from, and how a wrong one is refused: in one line that names it."""

from pathlib import Path

import pytest
from pydantic import BaseModel, Field, ValidationError

from sluice.daemon.settings import RoomSettings, load
from sluice.wire.errors import PermanentError


class Broker(BaseModel, extra="forbid"):
    host: str = "localhost"
    port: int = Field(default=1883, ge=1)


class Stall(BaseModel):
    animal: str = "cow"
    paths: str | list[str] = "straw"
    feeds: dict[str, list[int]] = {}


class BarnSettings(RoomSettings):
    """A room that is made up."""

    env_prefix = "BARN_"

    animal: str = "cow"
    """Who lives there."""
    stalls: int = Field(default=4, ge=1)
    """How many."""
    foods: list[str] = Field(default=[])
    """What they eat."""
    broker: Broker = Broker()
    """Whom they talk to."""
    other: Broker | None = None
    """Whom else."""
    by_name: dict[str, Stall] = Field(default={})
    """Stalls with names."""
    word: str | None = None
    """A secret."""


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


def test_tables_in_the_environment_name_by_name_or_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[by_name.left]\nanimal = "horse"\n[by_name.right]\nanimal = "pig"\n')
    monkeypatch.setenv("BARN_BY_NAME__left__PATHS", '["a", "b"]')
    monkeypatch.setenv("BARN_BY_NAME__mid-1__PATHS", "a.b")
    monkeypatch.setenv("BARN_BY_NAME__MID-1__FEEDS__HAY", "[1, 2]")
    monkeypatch.setenv("BARN_OTHER__PORT", "5")
    monkeypatch.setenv("BARN_BROKER__PORT", "6")
    monkeypatch.setenv("BARN_BROKER", '{"host": "whole", "port": 7}')
    settings = load(BarnSettings, file)
    assert settings.by_name == {
        "left": Stall(animal="horse", paths=["a", "b"]),
        "right": Stall(animal="pig"),
        "mid-1": Stall(paths="a.b", feeds={"hay": [1, 2]}),
    }
    assert settings.other == Broker(port=5)
    assert settings.broker == Broker(host="whole", port=6), "the single value is the more precise word"
    monkeypatch.delenv("BARN_OTHER__PORT")
    monkeypatch.setenv("BARN_OTHER", "null")
    assert load(BarnSettings, file).other is None


@pytest.mark.parametrize("text", ["[]", "{", "{}", "[1", "7", "null", "", "hunter2", '"quoted"'])
def test_text_stays_as_it_is_written(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BARN_WORD", text)
    assert load(BarnSettings).word == text
    monkeypatch.setenv("BARN_BY_NAME__LEFT__PATHS", text)
    (stall,) = load(BarnSettings).by_name.values() if text != "{}" else [Stall(paths=text)]
    assert stall.paths == ([] if text == "[]" else text)


def test_names_that_are_no_settings_are_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may use the prefix, too: `SLUICE_…` and `EDGE_…` are words of everyday use."""
    for name in ("BARN_COLOUR", "BARN_ANIMALS__X", "BARN_ANIMAL__X", "BARN", "BARN_", "ANIMAL", "LOG_LEVEL"):
        monkeypatch.setenv(name, "loud")
    assert load(BarnSettings) == BarnSettings()


def test_capitals_make_no_difference_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("barn_Animal", "goat")
    assert load(BarnSettings).animal == "goat"


def test_the_command_line_is_laid_over_single_names_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARN_BROKER__PORT", "6")
    assert load(BarnSettings, broker={"host": "given"}).broker == Broker(host="given", port=6)
    assert load(BarnSettings, broker=Broker(host="given")).broker == Broker(host="given")


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
        ("BARN_BROKER__PROT", "1", "BARN_broker.prot: Extra inputs are not permitted"),
        ("BARN_BY_NAME__LEFT", "text", "BARN_BY_NAME__LEFT: lists and tables are JSON"),
        ("BARN_BY_NAME__LEFT__FEEDS__HAY", "1,2", "BARN_BY_NAME__LEFT__FEEDS__HAY: lists and tables are JSON"),
        ("BARN_BY_NAME__LEFT__PATHS", "[1]", "BARN_by_name.left.paths"),
        ("BARN_FOODS", "hay", "BARN_FOODS: lists and tables are JSON"),
        ("BARN_FOODS", "", "BARN_FOODS: lists and tables are JSON"),
        ("BARN_FOODS", "7", "BARN_foods: "),
        ("BARN_BROKER", "{", "BARN_BROKER: lists and tables are JSON"),
    ],
)
def test_a_wrong_value_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal(None).startswith(f"setting {named}")


def test_a_wrong_value_on_the_command_line_is_named() -> None:
    assert refusal(None, stalls=0).startswith("setting BARN_stalls: ")


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert refusal(file).startswith(f"settings file {file}: ")
    file.write_bytes(b'animal = "\xff"')
    assert refusal(file).startswith(f"settings file {file}: ")


def test_a_secret_is_not_repeated_in_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BARN_STALLS", "BARN_FOODS"):
        monkeypatch.setenv(name, "hunter2")
        assert "hunter2" not in refusal(None)


def test_a_level_may_be_written_small() -> None:
    assert load(BarnSettings, log_level="warning").log_level == "WARNING"
