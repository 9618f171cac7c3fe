"""The catalogue of races as people read it: ``list`` and ``show``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any, Final

import msgspec
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mmurace.oracle.sometimes import describe
from mmurace.report import formats
from mmurace.report.facts import kernel_text
from mmurace.scenarios.catalogue import KernelCase, Race
from mmurace.scenarios.index import terms_of
from mmurace.scenarios.spec import Expectation

WIDE: Final = 110
"""Columns that the table needs: names of kernels and verdicts are long, and are not cut."""


def listing_of(races: Iterable[Race], width: int) -> RenderableType:
    """The table; where it has no room, a paragraph for each race with its kernels below."""
    return table_of(races) if width >= WIDE else Group(*map(_paragraph, races))


def _paragraph(race: Race) -> Group:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    for case, verdict in zip(race.kernels, _verdicts(race).split("\n"), strict=True):
        grid.add_row(Text(case.name), verdict)
    return Group(
        Text(f"{race.id} {race.name}: {race.title} ({race.family})"), Padding(grid, (0, 0, 0, 4))
    )


def table_of(races: Iterable[Race]) -> Table:
    """One row per race: id, title, family, and what each of its kernels does."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("race", overflow="fold")
    table.add_column("family", overflow="fold")
    table.add_column("kernel", no_wrap=True)
    table.add_column("expected", no_wrap=True)
    for race in races:
        told = (race.id, f"{race.name}: {race.title}", race.family)
        kernels = Text("\n".join(case.name for case in race.kernels))
        table.add_row(*map(Text, told), kernels, _verdicts(race))
    return table


def _verdicts(race: Race) -> Text:
    """One line per kernel."""
    styles = {True: "red", False: "green"}
    lines = [Text(expected(c.expect), styles[_bad(c.expect)]) for c in race.kernels]
    return Text("\n").join(lines)


def _bad(expect: Expectation) -> bool:
    return expect.verdict == "violated"


def expected(expect: Expectation) -> str:
    """``held``, or ``violated: O by cpu1 (tlb)``."""
    if not _bad(expect):
        return expect.verdict
    agent = f" by {expect.agent}" if expect.agent else ""
    cache = f" ({expect.cache})" if expect.cache else ""
    return f"violated: {expect.rule or 'any rule'}{agent}{cache}"


def page_of(race: Race) -> str:
    """All about one race, as text."""
    parts = [
        f"{race.id} {race.name}: {race.title}",
        _found_under(race),
        race.story,
        _section("Kernels", (_kernel(case) for case in race.kernels)),
        _section("The window was entered if", map(describe, race.sometimes)),
        _section("Programs", _programs(race)),
        _section("Recipe that widens the window", _recipe(race)),
        _section("Sources", race.source),
        _section("Run it", _commands(race)),
    ]
    return "\n\n".join(part for part in parts if part)


def _found_under(race: Race) -> str:
    """The words under which ``list`` finds it."""
    terms = terms_of(race)
    cves = f"\ncve: {', '.join(terms.cves)}" if terms.cves else ""
    return (
        f"family: {race.family}\nsubsystems: {', '.join(terms.subsystems)}\n"
        f"breaks: {', '.join(terms.rules)}, on {', '.join(terms.releases)}{cves}"
    )


def _section(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f"{title}:\n{textwrap.indent(body, '  ')}" if body else ""


def _kernel(case: KernelCase) -> str:
    kernel = f"{case.name} on {kernel_text(case.kernel)}: {expected(case.expect)}"
    return f"{kernel}\n  {case.expect.description}" if case.expect.description else kernel


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "|".join(map(str, value))
    return str(value)


def _programs(race: Race) -> list[str]:
    """Each program and its operations, in order; ``Touch x8``: eight of them."""
    lines = []
    for program in race.programs:
        runs = groupby(type(step.operation).__name__ for step in program.steps)
        counts = ((kind, sum(1 for _ in run)) for kind, run in runs)
        kinds = (f"{kind} x{count}" if count > 1 else kind for kind, count in counts)
        lines.append(f"{program.name} on {program.node}: {', '.join(kinds)}")
    return lines


def _recipe(race: Race) -> list[str]:
    if race.chaos is None:
        return []
    return [_rule(msgspec.to_builtins(rule)) for rule in race.chaos.rule]


def _rule(rule: Mapping[str, Any]) -> str:
    """``name: hold FrameRead from device0 until PagePut to memory``."""
    parts = [f"{rule['name']}: {rule['fault']} {_match(rule.get('match', {}))}"]
    if "until" in rule:
        parts.append(f"until {_match(rule['until'])}")
    if rule.get("after"):
        parts.append(f"by {rule['after']['min']} to {rule['after']['max']} deliveries")
    if rule.get("probability", 1.0) < 1.0:
        parts.append(f"with probability {rule['probability']}")
    return " ".join(parts)


def _match(match: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in match.items()) or "any message"


def _commands(race: Race) -> list[str]:
    name = race.id if race.in_catalogue() else race.where
    return [formats.command("repro", name, "--kernel", case.name) for case in race.kernels]


def race_dict(race: Race) -> dict[str, Any]:
    """A race as builtins, for ``--json``."""
    return {
        "id": race.id,
        "name": race.name,
        "title": race.title,
        "family": race.family,
        "found_under": asdict(terms_of(race)),
        "kernels": [msgspec.to_builtins(case) for case in race.kernels],
        "sometimes": msgspec.to_builtins(race.sometimes),
        "source": list(race.source),
        "story": race.story,
        "chaos": msgspec.to_builtins(race.chaos) if race.chaos else None,
    }
