"""Agreement with what was measured, as people read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mmurace.conform.compare import Agreement, Difference, compare
from mmurace.conform.measured import kind_of
from mmurace.conform.table import Table, read_table
from mmurace.explorer.run.outcome import HELD, VIOLATED
from mmurace.protocol.errors import UserError
from mmurace.report import formats, machine
from mmurace.report.commands.values import kernel_from
from mmurace.report.facts import kernel_text
from mmurace.report.screen import say, write_out
from mmurace.scenarios.world_file import WorldFile

SHOWN_MAX: Final = 10
"""Differences, and reasons, that are shown of a table."""


def conform(
    suite: str, files: list[Path], release: str, switches: list[str], as_json: bool
) -> int:  # fmt: skip
    """Compare each file; 0 if every difference is explained, else 1.  Raises ``UserError``."""
    tables = [read_table(file) for file in files]
    for table in tables:
        _check_suite(suite, table)
    done: list[Agreement] = []
    for table, file in zip(tables, files, strict=True):
        kernel = kernel_from(WorldFile(), release or table.release, table.machine, switches, [])
        say(f"running {formats.many(len(table.rows), 'row')} of {file}")
        done.append(compare(table, kernel))
        if not as_json:
            write_out("\n".join(lines_of(done[-1])))
    if as_json:
        write_out(machine.as_json({"tables": [agreement_dict(one) for one in done]}))
    return VIOLATED if any(one.unexplained for one in done) else HELD


def _check_suite(suite: str, table: Table) -> None:
    shows = kind_of(table).suite
    if shows != suite:
        raise UserError(str(table.path), f"is a table of {shows}", f"conform {shows} FILE.tsv")


def lines_of(found: Agreement) -> Iterator[str]:
    """All about one table."""
    table, kernel = found.table, found.kernel
    yield f"{table.path}: Linux {table.release}, {table.machine}; here {kernel_text(kernel)}"
    unsaid = sum(found.unsaid.values())
    yield f"  rows        {found.rows} run, {unsaid} cannot be said{_most(found.unsaid)}"
    if not found.operations:
        return
    contract = _share(found.same_contract, found.operations)
    yield f"  contract    {contract} agree in brackets, flushes and frees"
    whole = _share(found.rows_whole, found.rows, "row")
    yield f"  all words   {_share(found.same, found.operations)}, {whole}"
    for reason, count in _reasons(found).most_common(SHOWN_MAX):
        yield f"  explained   {count}: {reason}"
    for one in found.unexplained[:SHOWN_MAX]:
        yield from difference_lines(one)
    yield f"  unexplained {formats.many(len(found.unexplained), 'operation')}"


def difference_lines(one: Difference) -> Iterator[str]:
    """One operation, as it was measured and as it is here."""
    yield f"  line {one.row.line}: {one.called.name}:{one.called.page} of {one.row.memory}"
    yield f"    measured  {' '.join(one.measured) or '-'}"
    yield f"    here      {' '.join(one.ours) or '-'}"


def _reasons(found: Agreement) -> Counter[str]:
    return Counter(one.reason for one in found.differences if one.reason)


def _share(part: int, of: int, word: str = "operation") -> str:
    return f"{part:,} of {formats.many(of, word)} ({100 * part / of:.1f} %)"


def _most(unsaid: Counter[str]) -> str:
    shown = ", ".join(f"{why} {count}" for why, count in unsaid.most_common(SHOWN_MAX))
    return f" ({shown})" if shown else ""


def agreement_dict(found: Agreement) -> dict[str, Any]:
    """The same for programs."""
    return {
        "file": str(found.table.path), "measured": found.table.release,
        "machine": found.table.machine, "kernel": kernel_text(found.kernel),
        "rows": found.rows, "rows_whole": found.rows_whole, "unsaid": dict(found.unsaid),
        "operations": found.operations, "same": found.same,
        "same_contract": found.same_contract, "explained": dict(_reasons(found)),
        "unexplained": [
            {"line": one.row.line, "operation": one.called.name, "page": one.called.page,
             "memory": one.row.memory, "measured": list(one.measured), "here": list(one.ours)}
            for one in found.unexplained
        ],
    }  # fmt: skip
