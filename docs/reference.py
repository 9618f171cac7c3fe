"""The page of what a scenario can say: ``docs/reference.md``, made by ``docs/generate.py``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import get_args

import msgspec
from structs import field_notes, plain

from mmurace.nodes.kernel.variant.switch import fields_of, owners
from mmurace.oracle.sometimes import Condition, Mark, known_caches
from mmurace.report.kernels import shown
from mmurace.scenarios.operations import operation_keys
from mmurace.scenarios.operations import operations as known_operations

HEAD = """\
<!-- Made by docs/generate.py from nodes/kernel/variant/, the secondaries and
oracle/sometimes.py.  Do not edit. -->

# What a scenario can say

How a file is put together says [scenarios.md](scenarios.md).

- [Switches](#switches)
- [Operations](#operations)
- [Conditions](#conditions)
"""
SWITCHES = """\
## Switches

What a kernel does, each on its own.  A release and an architecture are a preset of them; `set` in a
`[[kernel]]` and `--set` change single ones.  Values that contradict each other are refused.
`launch.py kernels` prints with which release each value came, `kernels v6.2 v6.6` the commits.

| switch | values | | where |
|---|---|---|---|"""
OPERATION_HEAD = """\
## Operations

One step of a program.  Every step may have `after` (steps of programs that it waits for) and
`repeat`, and in a world with more than one mm it says which, `mm`.  Addresses are in bytes, `pages`
in pages of 4 KiB.

| `op` | keys | |
|---|---|---|"""
CONDITION_HEAD = """\
## Conditions

What `[[sometimes]]` can ask for, by `kind`.

| `kind` | keys | |
|---|---|---|"""


def page() -> str:
    """The whole page."""
    marks = ", ".join(f"`{mark}`" for mark in get_args(Mark))
    caches = ", ".join(f"`{cache}`" for cache in known_caches())
    return "\n".join([
        HEAD, SWITCHES, *switches(), "", OPERATION_HEAD, *operations(), "",
        CONDITION_HEAD, *conditions(), "",
        f"Steps for `from` and `to`: {marks}.  Caches: {caches}.", "",
    ])  # fmt: skip


def switches() -> Iterator[str]:
    """A row for each."""
    for owner in owners():
        notes = field_notes(owner)
        for field in fields_of(owner):
            place = f"{field.switch.function} ({field.switch.file})"
            where = "hardware" if field.switch.hardware else place
            known = ", ".join(f"`{shown(value)}`" for value in field.values)
            yield f"| `{field.name}` | {known} | {notes.get(field.name, '')} | {where} |"


def operations() -> Iterator[str]:
    """A row for each, by name."""
    for name, kind in sorted(known_operations().items()):
        keys = ", ".join(
            f"`{key}`" if needed else f"`{key}` ({json.dumps(default)})"
            for key, needed, default in operation_keys(name)
        )
        yield f"| `{name}` | {keys} | {summary(kind)} |"


def conditions() -> Iterator[str]:
    """A row for each kind."""
    for kind in get_args(Condition):
        keys = ", ".join(
            f"`{f.encode_name}`" if f.required else f"`{f.encode_name}` ({json.dumps(f.default)})"
            for f in msgspec.structs.fields(kind)
        )
        yield f"| `{kind.__struct_config__.tag}` | {keys} | {summary(kind)} |"


def summary(described: type) -> str:
    """The first paragraph of a docstring, on one line."""
    text = plain(inspect.getdoc(described) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")
