"""The command behind ``run.py``: asks the judges, keeps their answers, prints the table."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.mutants.planted import ROOT, Answer, Listed, Mutant, Workshop, listed
from mmurace.protocol.errors import UserError
from mmurace.report.formats import many

WAYS: Final = ("hunt", "programs", "catalogue", "suite")
VERIFIED: Final = ("hunt", "programs")
"""What they find is asked of the stock code, too."""
BOUND: Final = {"catalogue": 600.0, "suite": 600.0}
"""Seconds for those that end by themselves."""
GRACE: Final = 20.0
"""So many times the processor time that it was given, and a judge is ended."""


class Result(msgspec.Struct, frozen=True):
    """An answer as it is kept."""

    mutant: str
    by: str
    digest: str
    asked: float
    """Seconds of processor time that were given."""
    answer: Answer
    blamed: bool = False
    """The stock code breaks there as well."""

    @property
    def noticed(self) -> bool:
        """By the mutant, and not by anything else."""
        return self.answer.noticed and not self.blamed


@dataclass
class Results:
    """The answers in a file, one a line."""

    path: Path
    rows: dict[tuple[str, str], Result] = field(default_factory=dict)

    def load(self) -> None:
        """What there is; a line that was cut off is passed over."""
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                try:
                    row = msgspec.json.decode(line, type=Result)
                except msgspec.DecodeError:
                    continue
                self.rows[row.mutant, row.by] = row

    def add(self, row: Result) -> None:
        """One more."""
        self.rows[row.mutant, row.by] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")

    def missing(self, mutant: Mutant, by: str, seconds: float) -> bool:
        """Whether it must be asked: never before, another mistake by now, or too short in vain."""
        row = self.rows.get((mutant.id, by))
        if row is None or row.digest != mutant.digest:
            return True
        return not row.noticed and by in VERIFIED and row.asked < seconds


# ---- asking --------------------------------------------------------------------------------------


class Asker:
    """Runs judges in copies of the tree; every process that it starts ends with this one."""

    def __init__(self, given: argparse.Namespace, list_: Listed, workshop: Workshop) -> None:
        self.given, self.list, self.workshop = given, list_, workshop
        self.stock = workshop.copy()
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def ask_all(self, mutant: Mutant, ways: Sequence[str], results: Results) -> None:
        """Show a mutant to all that are named; its copy goes then."""
        for way in ways:
            row = self.ask(mutant, way)
            if self._stopped:
                return
            results.add(row)
            said = f"{row.answer.rule} {row.answer.text}"[:150]
            print(f"{row.mutant} {row.by}: {_cell(row)} {said}", file=sys.stderr, flush=True)
        self.workshop.drop(mutant)

    def ask(self, mutant: Mutant, by: str) -> Result:
        """Show a mutant to a judge, and what was found to the stock code."""
        what = list(mutant.kernels)
        if by == "suite":
            what = [] if self.given.suite == "all" else list(self.list.suite[mutant.subsystem])
        seconds = BOUND.get(by, self.given.seconds)
        answer = self._judge(self.workshop.copy(mutant), by, what, seconds)
        blamed = False
        if answer.noticed and by in VERIFIED and answer.again:
            blamed = self._judge(self.stock, by, what, seconds, answer.again).noticed
        return Result(mutant.id, by, mutant.digest, seconds, answer, blamed)

    def _judge(
        self, tree: Path, by: str, what: Sequence[str], seconds: float, again: str = ""
    ) -> Answer:
        words = [sys.executable, "-m", "benchmarks.mutants.judges", by, *what]
        words += ["--seconds", str(seconds), *(["--again", again] if again else [])]
        with self._lock:
            if self._stopped:
                return Answer(False, 0)
            child = self._start(tree, words)
            self._running.add(child)
        try:
            return _answer(child, seconds * GRACE)
        finally:
            with self._lock:
                self._running.discard(child)

    def _start(self, tree: Path, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
        )  # fmt: skip

    def stop(self) -> None:
        """End all of them."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.kill()


def _answer(child: subprocess.Popen[str], seconds: float) -> Answer:
    """What a judge says, if it does so in time."""
    began = time.monotonic()
    out, err = _read(child, seconds)
    if child.returncode == -signal.SIGKILL:
        return Answer(False, seconds, text="no answer in time")
    try:
        return msgspec.json.decode(out.strip().rpartition("\n")[2], type=Answer)
    except msgspec.DecodeError:
        why = (err.strip().rpartition("\n")[2] or "no answer")[-200:]
        return Answer(True, time.monotonic() - began, "broken", why)


def _read(child: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """Its output; its input stays open meanwhile, which says that we live."""
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    with ThreadPoolExecutor(1) as other, child.stdin, child.stdout, child.stderr:
        err = other.submit(child.stderr.read)
        out = child.stdout.read()
        child.wait()
        timer.cancel()
        return out, err.result()


# ---- telling -------------------------------------------------------------------------------------


def table(mutants: Iterable[Mutant], ways: Sequence[str], results: Results) -> list[str]:
    """A line for each mutant, Markdown; then the totals."""
    lines = [_line("mutant", "subsystem", *ways, "by"), "|---" * (len(ways) + 3) + "|"]
    counts = dict.fromkeys(ways, 0)
    shown = [mutant for mutant in mutants if any((mutant.id, way) in results.rows for way in ways)]
    for mutant in shown:
        rows = {way: results.rows.get((mutant.id, way)) for way in ways}
        cells = [_cell(row) for row in rows.values()]
        for way, row in rows.items():
            counts[way] += row is not None and row.noticed
        rules = [row.answer.rule for row in rows.values() if row and row.noticed]
        lines.append(_line(mutant.id, mutant.subsystem, *cells, _rules(rules)))
    total = (f"{count} of {len(shown)}" for count in counts.values())
    return [*lines, _line("noticed", "", *total, "")]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rules(rules: list[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, rules)))


def _cell(row: Result | None) -> str:
    if row is None:
        return "?"
    if row.blamed:
        return "(stock too)"
    return f"{row.answer.seconds:.1f} s" if row.noticed else "no"


def unseen(mutants: Iterable[Mutant]) -> list[str]:
    """Those that nobody notices, with the reason."""
    return [f"- {mutant.id}: {mutant.unseen}" for mutant in mutants if mutant.unseen]


def _arguments(doc: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="ID")
    parser.add_argument("--by", default=",".join(WAYS), help="some of " + ",".join(WAYS))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--suite", choices=("subsystem", "all"), default="subsystem")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutants.jsonl")
    parser.add_argument("--again", action="store_true", help="ask also what was answered before")
    parser.add_argument("--table", action="store_true", help="ask nothing, print what is known")
    return parser.parse_args()


def main(doc: str | None) -> int:
    """Ask, and print; 2 if something is named that is not there, 130 if it was interrupted."""
    given = _arguments(doc)
    for ends in (signal.SIGINT, signal.SIGTERM):  # a shell's background ignores Ctrl-C
        signal.signal(ends, signal.default_int_handler)
    try:
        list_ = listed()
        mutants, ways = list_.chosen(given.only), given.by.split(",")
        if not set(ways) <= set(WAYS):
            raise UserError("--by", f"is {given.by!r}", "some of " + ",".join(WAYS))
        results = Results(given.results)
        results.load()
        if not given.table:
            _ask_all(given, list_, mutants, ways, results)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print("\n".join(table(mutants, ways, results)))
    print("\n".join(unseen(mutants)))
    return 0


def _ask_all(
    given: argparse.Namespace, list_: Listed, mutants: list[Mutant], ways: list[str],
    results: Results,
) -> None:  # fmt: skip
    workshop = Workshop()
    asker = Asker(given, list_, workshop)
    pool = ThreadPoolExecutor(given.jobs)
    try:
        print(
            many(len(mutants), "mutant"),
            "and",
            many(len(ways), "judge"),
            file=sys.stderr,
            flush=True,
        )
        asked = []
        for mutant in mutants:
            wanted = [w for w in ways if given.again or results.missing(mutant, w, given.seconds)]
            asked.append(pool.submit(asker.ask_all, mutant, wanted, results))
        for one in asked:
            one.result()
    finally:
        asker.stop()
        pool.shutdown(cancel_futures=True)  # who is copying has finished then
        workshop.close()
