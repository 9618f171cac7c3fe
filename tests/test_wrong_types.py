"""Any value of the wrong type anywhere in a file that people write is an error with its place."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmurace.broker.chaos_config import CONFIGS, load_rules
from mmurace.nodes.kernel.variant import preset
from mmurace.protocol.errors import UserError
from mmurace.scenarios.catalogue import DIRECTORY, load_race
from mmurace.scenarios.runs import mixed_run
from mmurace.scenarios.spec import RUN_FILE, RunSpec
from mmurace.scenarios.tables import toml_string
from mmurace.scenarios.world_file import load_world
from tests.test_world_file import WHOLE

KeyPath = tuple[str | int, ...]
OTHERS: list[Any] = [
    [], {}, [[]], [{}], {"": 0}, {"a": [1]}, ["x"], [1], "", "x", "\U0001f600", 0, -1, 1 << 62,
    1.5, float("nan"), float("inf"), True, datetime.date(2020, 1, 1), datetime.time(1, 2),
]  # fmt: skip
RACES = sorted(DIRECTORY.glob("*.toml"))
CHAOS = sorted(CONFIGS.glob("*.toml"))
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def text_of(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        pairs = (f"{toml_string(key)} = {text_of(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else repr(value)


def places(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every place in a table that holds a value."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(value: Any, path: KeyPath, new: Any) -> Any:
    """A copy with another value at that place."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def place_of_error(load: Callable[[], object]) -> str | None:
    """Where a file is wrong; None if it is right."""
    try:
        load()
    except UserError as error:
        return error.where
    return None


def refused_or_right(
    data: st.DataObject, text: str, file: Path, load: Callable[[Path], object]
) -> None:
    """Replace one value; what does not fit is refused with the file and the key path."""
    table = tomllib.loads(text)
    path = data.draw(st.sampled_from(list(places(table))))
    changed = replaced(table, path, data.draw(st.sampled_from(OTHERS)))
    lines = (f"{toml_string(key)} = {text_of(value)}\n" for key, value in changed.items())
    file.write_text("".join(lines), encoding="utf-8")
    assert tomllib.loads(file.read_text(encoding="utf-8")).keys() == changed.keys()
    where = place_of_error(lambda: load(file))
    assert where is None or where.startswith(f"{file}: "), where


@SETTINGS
@given(st.data())
def test_in_a_race(tmp_path: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(RACES)).read_text(encoding="utf-8")
    refused_or_right(data, text, tmp_path / "race.toml", load_race)


@SETTINGS
@given(st.data())
def test_in_chaos(tmp_path: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(CHAOS)).read_text(encoding="utf-8")
    refused_or_right(data, text, tmp_path / "chaos.toml", load_rules)


@SETTINGS
@given(st.data())
def test_in_a_world(tmp_path: Path, data: st.DataObject) -> None:
    def load(file: Path) -> None:
        world = load_world(file)
        world.options(world.kernel_of())

    refused_or_right(data, WHOLE, tmp_path / "world.toml", load)


@SETTINGS
@given(st.data())
def test_in_a_saved_run(tmp_path: Path, data: st.DataObject) -> None:
    text = mixed_run(preset("v6.6"), seed=1).to_toml(tmp_path)
    refused_or_right(data, text, tmp_path / RUN_FILE, lambda file: RunSpec.load(file.parent))


@pytest.mark.parametrize("wrong", [["touch"], {"touch": 1}, 7, 1.5, True])
def test_an_operation_has_a_word(tmp_path: Path, wrong: Any) -> None:
    table = tomllib.loads((DIRECTORY / RACES[0]).read_text(encoding="utf-8"))
    changed = replaced(table, ("program", 0, "steps", 0, "op"), wrong)
    file = tmp_path / "race.toml"
    lines = (f"{toml_string(key)} = {text_of(value)}\n" for key, value in changed.items())
    file.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"race\.toml: program\[0\]\.steps\[0\]\.op: "):
        load_race(file)
