"""Runs that are ended by force: each is judged and replayed up to where its record ends.

    python -m benchmarks.kills --runs 100 --seed 1

Each run is ended at a random moment: a signal to its launcher or to one of its processes.  Printed
is one line for each, and at the end how many there were of each kind, and how many of them did
not agree: ``check`` and the replays on both engines must have the same violations and statistics.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from mmurace.explorer.run import session
from mmurace.explorer.run.outcome import Outcome
from mmurace.nodes.journal import journal_path

ROOT: Final = Path(__file__).resolve().parents[1]
START_SECONDS_MAX: Final = 60.0
END_SECONDS_MAX: Final = 25.0
FEED_SECONDS: Final = 60
BYTES_MAX: Final = 600_000
"""Of the memory node's journal when the end comes."""
RACES: Final = ("E01", "E08")
CHAOS: Final = ("", "lossy", "kill-device", "kill-vm", "jitter")
SIGNALS: Final = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Parse, run, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    chance, kinds = random.Random(options.seed), Counter[str]()
    for number in range(options.runs):
        with TemporaryDirectory(prefix="kills-") as directory:
            kind = one(Path(directory), chance, number)
        kinds[kind] += 1
    for kind, count in sorted(kinds.items()):
        print(f"{count:6} {kind}")


def one(directory: Path, chance: random.Random, number: int) -> str:
    """End one run by force; which process it was, which signal, and whether all agree."""
    run = directory / "run"
    words = ["stress", "--seconds", str(FEED_SECONDS), "--seed", str(number), "--out", str(run)]
    chaos = chance.choice(CHAOS)
    words += ["--chaos", chaos] if chaos else []
    launcher = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *words], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_bytes(launcher, journal_path(run, "memory"), chance.randrange(BYTES_MAX))
        victim, what = choose(launcher, chance)
        os.kill(victim, what)
        launcher.wait(END_SECONDS_MAX)
        who = "launcher" if victim == launcher.pid else "child"
    finally:
        launcher.kill()
        launcher.wait()
    wait_until_gone(run)
    kind = f"{what.name} to {who}"
    agreed, told = compare(run, directory)
    print(f"{number}: {kind}, {chaos or 'no'} chaos: {told}", flush=True)
    return f"{kind}: {'agree' if agreed else 'DIFFER'}"


def wait_for_bytes(launcher: subprocess.Popen[bytes], path: Path, size: int) -> None:
    """Until the journal is that large; within bounds."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not path.exists() or path.stat().st_size < size:
        if launcher.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.001)


def choose(launcher: subprocess.Popen[bytes], chance: random.Random) -> tuple[int, signal.Signals]:
    """Whom to send what: half the time the launcher, else any child, which only KILL ends."""
    found = psutil.Process(launcher.pid).children()
    children = [p.pid for p in found if "resource_tracker" not in " ".join(p.cmdline())]
    if chance.random() < 0.5 or not children:
        return launcher.pid, chance.choice(SIGNALS)
    return chance.choice(children), signal.SIGKILL


def wait_until_gone(run: Path) -> None:
    """Until no process has a file of the run open."""
    deadline = time.monotonic() + END_SECONDS_MAX
    while time.monotonic() < deadline and any(_holds(run, p) for p in psutil.process_iter()):
        time.sleep(0.05)


def _holds(run: Path, process: psutil.Process) -> bool:
    try:
        return any(Path(file.path).is_relative_to(run) for file in process.open_files())
    except psutil.Error:
        return False


def compare(run: Path, directory: Path) -> tuple[bool, str]:
    """Whether the judge and both replays agree, and what they say."""
    checked = session.check(run)
    told = [said(checked)]
    for on in ("simulator", "processes"):
        out = directory / on
        out.mkdir()
        again = session.replay(run, on, out)
        if again.status != "finished":
            return False, f"{told[0]}; {on}: {again.status}: {again.detail}"
        told.append(said(again))
    return len(set(told)) == 1, told[0] if len(set(told)) == 1 else "; ".join(told)


def said(outcome: Outcome) -> str:
    """What must be equal."""
    rules = ",".join(violation.rule for violation in outcome.violations)
    how = outcome.verdict.how
    return f"{how.deliveries} deliveries, {how.operations} operations, [{rules}] {outcome.record}"


if __name__ == "__main__":
    main()
