"""The matrix as people read it: differences first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mmurace.explorer.run.outcome import HELD, VIOLATED
from mmurace.explorer.sample import matrix as explored
from mmurace.explorer.sample.matrix import Found, Row
from mmurace.report import formats, machine
from mmurace.report.junit import Case, ci_lines, write_junit
from mmurace.report.progress import Progress
from mmurace.report.screen import say, stderr, stdout, write_out


def matrix(
    races: list[str],
    patch: str,
    schedules: int | None,
    jobs: int,
    seed: int,
    as_json: bool,
    junit: Path | None = None,
) -> int:
    """Run it and print it; the exit status: 0 if all agree.  Raises ``UserError``."""
    todo = explored.tasks(races, patch, schedules or explored.SCHEDULES, seed)
    say(f"{formats.many(len(todo), 'pair')} of race and kernel, seed {seed:#x}")
    done: list[Row] = []
    with Progress(stderr(), _line) as progress:
        for row in explored.rows(todo, jobs):
            done.append(row)
            progress({"done": len(done), "of": len(todo), "row": f"{row.race} {row.kernel}"})
    cases = [_case(row, patch, seed) for row in done]
    if junit:
        write_junit(junit, cases)
    if as_json:
        write_out(machine.as_json(matrix_dict(done, patch)))
    else:
        if shown := sorted(_shown(done, patch), key=lambda row: (row.agrees, not row.turned)):
            stdout().print(table_of(shown, patch))
        write_out(summary(done, patch))
        for line in ci_lines(cases):
            write_out(line)
    return HELD if all(row.agrees for row in done) else VIOLATED


def _case(row: Row, patch: str, seed: int) -> Case:
    """A row as a test, with how to see it again."""
    found = found_text(row.patched if patch and row.patched else row.stock)
    wanted = found_text(row.stock) if patch else row.expected
    failure = "" if row.agrees else f"{found}, not {wanted}"
    kernel = row.kernel.removeprefix(f"{row.race}-")
    patched = ("--patch", patch) if patch else ()
    again = formats.command(
        "explore", row.race, "--kernel", kernel, *patched, "--seed", f"{seed:#x}"
    )
    return Case(row.race, kernel, failure, output=again)


def _line(numbers: Mapping[str, Any]) -> str:
    return f"{numbers['done']} of {numbers['of']}: {numbers['row']}"


def _shown(rows: Iterable[Row], patch: str) -> list[Row]:
    """With a patch only what it changes."""
    return [row for row in rows if not patch or not row.agrees]


def table_of(rows: Iterable[Row], patch: str) -> Table:
    """A row for each race and kernel."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="")
    heads = ("stock", patch) if patch else ("expected", "found")
    for head in ("", "race", "kernel", *heads):
        table.add_column(head, overflow="fold")
    for row in rows:
        both = (
            (found_text(row.stock), found_text(row.patched) if row.patched else "")
            if patch
            else (row.expected, found_text(row.stock))
        )
        table.add_row("" if row.agrees else "!", row.race, row.kernel, *both)
    return table


def found_text(found: Found) -> str:
    """``violated: S4 by cpu1 (3 of 120)``."""
    if not found.breaches:
        return found.verdict
    return f"violated: {', '.join(found.breaches)} ({found.violated} of {found.schedules})"


def summary(rows: list[Row], patch: str) -> str:
    """How many agree."""
    pairs = formats.many(len(rows), "pair")
    differ = sum(not row.agrees for row in rows)
    if not patch:
        return f"{pairs} of race and kernel: {len(rows) - differ} as expected, {differ} not"
    reached = sum(row.reached for row in rows)
    turned = sum(row.turned for row in rows)
    return (
        f"{pairs} of race and kernel, {reached} of them run what {patch} replaces: "
        f"{turned} with another verdict, {differ - turned} with other rules broken"
    )


def matrix_dict(rows: list[Row], patch: str) -> dict[str, Any]:
    """The same for programs."""
    agree = all(row.agrees for row in rows)
    return {
        "patch": patch or None,
        "agree": agree,
        "rows": [asdict(row) | {"agrees": row.agrees, "turned": row.turned} for row in rows],
    }
