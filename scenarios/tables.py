"""TOML in and out: strict conversion with exact key paths, and a small writer.

The standard library reads TOML but does not write it.  The writer below covers what run files
hold: strings, integers, booleans, arrays and tables.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

from mmurace.nodes.files import read_sealed
from mmurace.protocol.errors import UserError

T = TypeVar("T")
Table = dict[str, Any]

_AT = re.compile(r"^(?P<problem>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<key>.*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<key>.*)`$")
_TYPE = re.compile(r"^Expected `(?P<expected>.*?)`, got `(?P<got>.*)`$")
_BARE_KEY = re.compile(r"^[A-Za-z0-9_-]+$")
_ESCAPES: Final = {
    "\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f",
}  # fmt: skip
_HEX_KEYS: Final = frozenset({"address", "hva", "gpa", "gfn"})
"""Keys whose integers are written in hexadecimal, as kernel people read them."""


class TomlTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of what is read from a TOML table: unknown keys are errors."""


# ---- in ----------------------------------------------------------------------------------------


def read_toml(path: Path, where: str = "") -> Table:
    """The top table of a file.

    Raises ``UserError`` if it cannot be read, is not TOML or does not fit the seal that it has.
    """
    try:
        text = read_sealed(path)
    except UserError as error:
        if where and error.where == str(path):
            raise UserError(where, error.problem) from None
        raise
    return parse_toml(text, where or str(path))


def parse_toml(text: str, where: str) -> Table:
    """The top table of a text.  Raises ``UserError``."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers and arrays beyond Python's bounds
        raise UserError(where, f"is not TOML: {error}") from None


def convert(value: Any, kind: type[T], where: str) -> T:
    """Builtins as a typed value, strictly.  Raises ``UserError`` with the key path.

    ``where`` is the file, or the file and the path of ``value`` in it.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _user_error(str(error), kind, where) from None


def convert_each(value: Any, kind: type[T], where: str) -> tuple[T, ...]:
    """The same for every element of an array, so that an error names its index."""
    return tuple(
        convert(item, kind, f"{where}[{index}]") for index, item in enumerate(array(value, where))
    )


def array(value: Any, where: str) -> list[Any]:
    """``value``, which must be an array.  Raises ``UserError``."""
    if not isinstance(value, list):
        raise UserError(where, f"is {_type_name(value)}", "an array")
    return value


def sub_table(value: Any, where: str) -> Table:
    """``value``, which must be a table.  Raises ``UserError``."""
    if not isinstance(value, dict):
        raise UserError(where, f"is {_type_name(value)}", "a table")
    return value


def deeper(where: str, key: str) -> str:
    """The place ``key`` in ``where``: a file gets ``file: key``, a path gets ``path.key``."""
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"


def _type_name(value: Any) -> str:
    names = {dict: "a table", list: "an array", str: "a string", int: "an integer"}
    return names.get(type(value), f"a {type(value).__name__}")


def _user_error(message: str, kind: type[Any], where: str) -> UserError:
    match = _AT.match(message)
    problem, path = (match["problem"], match["path"] or "") if match else (message, "")
    place = deeper(where, path.lstrip(".")) if path else where
    known = ", ".join(_keys(kind)) if not path else ""
    if found := _UNKNOWN.match(problem):
        return UserError(place, f"unknown key '{found['key']}'", known and f"one of {known}")
    if found := _MISSING.match(problem):
        return UserError(place, f"missing key '{found['key']}'")
    if found := _TYPE.match(problem):
        return UserError(place, f"is {found['got']}", found["expected"])
    return UserError(place, problem[:1].lower() + problem[1:], _choices(kind, path))


def _choices(kind: Any, path: str) -> str:
    """The words that can stand at ``path`` in ``kind``, if only some can."""
    for name in filter(None, path.split(".")):
        fields = msgspec.structs.fields(kind) if _keys(kind) else ()
        kind = next((field.type for field in fields if field.encode_name == name), None)
    return f"one of {', '.join(map(str, get_args(kind)))}" if get_origin(kind) is Literal else ""


def _keys(kind: type[Any]) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return list(kind.__struct_encode_fields__)
    return []


# ---- out ---------------------------------------------------------------------------------------


def toml_text(table: Mapping[str, Any]) -> str:
    """A table as TOML text; ``None`` values are left out."""
    lines: list[str] = []
    _write_table(table, (), lines)
    return "\n".join(lines).strip() + "\n"


def toml_string(text: str) -> str:
    """A basic string with everything escaped that must be."""
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    return f"\\u{ord(char):04x}" if ord(char) < 0x20 or ord(char) == 0x7F else char


def _key(key: str) -> str:
    return key if _BARE_KEY.match(key) else toml_string(key)


def _write_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    tables = {k: v for k, v in table.items() if isinstance(v, Mapping) or _is_tables(v)}
    for key, value in table.items():
        if value is not None and key not in tables:
            lines.append(f"{_key(key)} = {_value(value, key)}")
    for key, value in tables.items():
        name = (*path, _key(key))
        head, items = ("[{}]", [value]) if isinstance(value, Mapping) else ("[[{}]]", value)
        for item in items:
            lines += ["", head.format(".".join(name))]
            _write_table(item, name, lines)


def _is_tables(value: Any) -> bool:
    """A non-empty array of tables that is worth headings: small flat tables stay inline."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(item, Mapping) for item in value) and any(
        isinstance(inner, (Mapping, list, tuple)) and key != "after"
        for item in value
        for key, inner in item.items()
    )


def _value(value: Any, key: str = "") -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return hex(value) if key in _HEX_KEYS and value >= 0 else str(value)
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(k)} = {_value(v, k)}" for k, v in value.items() if v is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    return _array(value)


def _array(values: Sequence[Any]) -> str:
    if any(isinstance(item, Mapping) for item in values):
        return "[\n" + "".join(f"  {_value(item)},\n" for item in values) + "]"
    return "[" + ", ".join(map(_value, values)) + "]"
