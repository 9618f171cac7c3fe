"""The command line of the mmu_notifier emulator.  It parses, calls and prints.

Exit status: 0 held; 1 violated; 2 bad usage or input; 3 inconclusive; 4 the run itself broke;
5 no progress after healing; 130 interrupted.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # the imports take a second, and Ctrl-C may come meanwhile
    for ending in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, lambda *_: os._exit(130))

import re
import secrets
import sys
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from broker.chaos import load_rules
from broker.chaos_config import check_names
from explorer import exhaustion as exhaustive
from explorer import explain as explainer
from explorer import explore as exploration
from explorer import minimize as minimizer
from explorer import outcome as codes
from explorer import schedule_file, session
from explorer.bounds import size_from
from explorer.outcome import Outcome
from explorer.replay_file import replay_file
from nodes.kernel.variant import RELEASES, Kernel
from protocol.errors import EmulatorError, PeerError, ReplayDivergence, UserError
from report import catalogue as pages
from report import exploration as explored
from report import interleaving, machine, minimizing, searches, words
from report.directory import new_run, point_latest, saved_run
from report.interrupts import Interrupted, interrupts
from report.progress import Progress
from report.schedules import minimized_file, run_or_schedule
from report.screen import mute, open_closed_streams, say, stderr, stdout, write_line
from report.terminal import print_outcome
from report.violation import RULES
from scenarios import catalogue
from scenarios.runs import workload_run
from scenarios.spec import RunSpec
from scenarios.world_file import WorldFile, load_world

SEED_MAX: Final = (1 << 63) - 1
"""The largest integer that TOML promises to hold."""
DRAWN_SEED_END: Final = 1 << 32
"""A drawn seed is short enough to be typed."""
SECONDS: Final = 30.0
"""How long ``stress`` feeds the endless workload, if nothing else is said."""
SHRINK_SECONDS: Final = 60.0
"""How long ``minimize`` may take."""
OPERATIONS: Final = 2000
"""The same on the simulator, which has no clock."""
PROGRAM: Final = "launch.py"
INTEGER: Final = re.compile(r"[0-9]{1,999}|0[xX][0-9a-fA-F]{1,999}")  # int() has a bound

app = typer.Typer(
    name=PROGRAM,
    help="An emulator of the Linux mmu_notifier world in which its races really happen.",
    epilog="Exit status: 0 held, 1 violated, 2 bad usage or input, 3 inconclusive, 4 the run "
    "broke, 5 no progress, 130 interrupted.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class On(StrEnum):
    """Which of the two brokers."""

    processes = "processes"
    simulator = "simulator"


SeedOption = Annotated[
    str | None,
    typer.Option("--seed", metavar="SEED", help="Integer or hex; drawn and printed if absent."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Directory of the run; else runs/<time>-<name>.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")
]
OnOption = Annotated[On, typer.Option("--on", help="Real processes, or all in one process.")]


# ---- commands ----------------------------------------------------------------------------------


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks of our own faults.")] = False,
) -> None:
    """Read by ``main``."""


@app.command()
def stress(
    workload: Annotated[
        str, typer.Option(metavar="mixed|FILE.strace", help="What runs; FILE is an strace log.")
    ] = "mixed",
    kernel: Annotated[
        str, typer.Option(metavar="RELEASE", help=f"One of {', '.join(RELEASES)}; else v6.6.")
    ] = "",
    arch: Annotated[str, typer.Option(metavar="ARCH", help="x86, arm64 or ppc; else x86.")] = "",
    switches: Annotated[
        list[str] | None, typer.Option("--set", metavar="SWITCH=VALUE", help="Differ in a switch.")
    ] = None,
    world: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML: nodes, sizes, kernel, mix.")
    ] = None,
    chaos: Annotated[
        str | None, typer.Option(help="Chaos rules: FILE.toml, or a name in broker/configs.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Feed operations for so long.")
    ] = None,
    operations: Annotated[int | None, typer.Option(min=1, help="Feed so many.")] = None,
    stop_on: Annotated[
        str, typer.Option(metavar="RULE", help="Stop feeding once it is broken; any: some rule.")
    ] = "",
    journal_max: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Stop feeding when the journals have 500M, 2G, ..."),
    ] = None,
    on: OnOption = On.processes,
    seed: SeedOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run a workload under chaos until a time, an operation count or a violation."""
    check_bounds(on, seconds, operations, stop_on, journal_max)
    file = load_world(world)
    variant = kernel_from(file, kernel, arch, switches or [])
    rules = None if chaos is None else load_rules(chaos)
    spec = workload_run(workload, variant, seed_from(seed), rules, operations, file)
    if rules is not None:
        check_names(rules, spec.world.nodes(), (p.name for p in spec.programs()), str(chaos))
    spec, seconds = bounded(spec, on, seconds)
    size = None if journal_max is None else size_from(journal_max, "--journal-max")
    return perform(spec, on, out, as_json, seconds, stop_on, size)


@app.command("list")
def list_races(as_json: JsonOption = False) -> int:
    """List the catalogue of races."""
    races = catalogue.load_all().values()
    if as_json:
        return print_json({"races": [pages.race_dict(race) for race in races]})
    console = stdout()
    console.print(pages.listing_of(races, console.width))
    return codes.HELD


@app.command()
def show(
    race: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a race, or its file.")],
    as_json: JsonOption = False,
) -> int:
    """Tell all about one race."""
    found = catalogue.find(race)
    if as_json:
        return print_json(pages.race_dict(found))
    typer.echo(pages.page_of(found))
    return codes.HELD


@app.command()
def repro(
    race: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a race, or its file.")],
    kernel: Annotated[
        str, typer.Option(help="One of the race's kernels; else its first, where it happens.")
    ] = "",
    on: OnOption = On.processes,
    seed: SeedOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Provoke one race of the catalogue with its recipe."""
    spec = catalogue.find(race).run(kernel, seed_from(seed))
    return perform(spec, on, out, as_json)


@app.command()
def explore(
    race: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a race, or its file.")],
    kernel: Annotated[
        str, typer.Option(help="One of the race's kernels; else its first, where it happens.")
    ] = "",
    strategy: Annotated[
        str,
        typer.Option(
            metavar="NAME", help=f"One of {', '.join(searches.STRATEGIES)}; else portfolio."
        ),
    ] = "",
    exhaust: Annotated[
        bool, typer.Option("--exhaustive", help="All of a small scope: --strategy stateful.")
    ] = False,
    scope: Annotated[
        str, typer.Option(metavar="NAME", help="With --exhaustive: another scope of the race.")
    ] = "",
    schedules: Annotated[int | None, typer.Option(min=1, help="Run at most so many.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Run for so long.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after a violation.")
    ] = False,
    recipe: Annotated[
        bool, typer.Option("--recipe/--no-recipe", help="With the race's chaos rules, or without.")
    ] = False,
    explanation: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Say why what was found fails.")
    ] = True,
    seed: SeedOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run many schedules of one race in the simulator."""
    known = catalogue.find(race)
    engine = searches.engine_from(strategy, exhaust, keep_going, recipe, scope)
    if engine:
        limits = exhaustive.Limits(schedules, seconds)
        spec = known.run_in_scope(kernel, seed_from(seed), scope)
        return searches.search(spec, engine, limits, out, as_json, explanation)
    strategy = strategy or "portfolio"
    spec = known.run(kernel, seed_from(seed))
    spec = spec if recipe else replace(spec, chaos=None)
    options = exploration.Options(strategy, schedules, seconds, "" if keep_going else "any")
    say(f"exploring {spec.name} with {strategy}, seed {spec.seed:#x}")
    with Progress(stderr(), explored.explore_line) as progress:
        found = exploration.explore(spec, options, progress)
    outcome = None if found.finding is None else searches.record(found, out)
    if as_json:
        told = searches.story_of(outcome, explanation)
        print_json(explored.exploration_dict(found, told))
    else:
        explored.print_exploration(stdout(), found)
        searches.tell(outcome, explanation)
    return found.exit_code


@app.command()
def replay(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A run, or its schedule.")],
    on: OnOption = On.simulator,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run a recorded schedule again, delivery by delivery."""
    recorded = run_or_schedule(source)
    directory = new_run(f"replay-{recorded.resolve().name}", out)
    say(f"replaying {recorded} on {on.value} in {directory}")
    try:
        with damage_of(recorded), interrupts(directory):
            again = replay_file if recorded.is_file() else session.replay
            outcome = again(recorded, on.value, directory)
    except UserError:
        with suppress(OSError):  # it holds something: then that is worth keeping
            directory.rmdir()
        raise
    machine.save_summary(outcome)
    if out is None:
        point_latest(directory)
    return finish(outcome, as_json)


@app.command()
def minimize(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A run, or a schedule file.")],
    rule: Annotated[str, typer.Option(help="The violation of this rule, if there are many.")] = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="End after so long.")] = SHRINK_SECONDS,
    search: Annotated[int, typer.Option(min=0, help="Runs that look for a shorter one.")] = 300,
    out: Annotated[Path | None, typer.Option("--out", help="The schedule file to write.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Find the shortest schedule with the same violation, and write it to a file."""
    file = minimized_file(source, out)
    with Progress(stderr(), minimizing.minimize_line) as progress, damage_of(source):
        loaded = schedule_file.load(run_or_schedule(source), rule)
        found = minimizer.minimize(
            loaded, lambda update: progress(minimizing.update_dict(update)), seconds, search
        )
    schedule_file.write(file, schedule_file.schedule_text(found.case, found.target))
    if as_json:
        print_json(minimizing.minimized_dict(found, str(file), seconds))
    else:
        typer.echo(minimizing.minimized_text(found, str(file), seconds))
    cut_short = found.interrupted and not minimizing.out_of_time(found, seconds)
    return codes.INTERRUPTED if cut_short else codes.VIOLATED


@app.command()
def explain(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A schedule file, or a run.")],
    form: Annotated[
        interleaving.Form, typer.Option("--format", help="How it is written.")
    ] = interleaving.Form.terminal,
    as_json: JsonOption = False,
) -> int:
    """Say why a schedule fails: the interleaving, what decides it, what was owed, what cures it."""
    with damage_of(source):
        loaded = schedule_file.load(run_or_schedule(source))
    if loaded.diverged:
        say(f"{source} no longer fits to the letter, same violation found: {loaded.diverged}")
    explanation = explainer.explain(loaded)
    if as_json or form is interleaving.Form.json:
        print_json(interleaving.as_dict(explanation))
    else:
        typer.echo(interleaving.written(explanation, form).rstrip("\n"))
    return codes.VIOLATED


@app.command()
def check(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A saved run.")],
    as_json: JsonOption = False,
) -> int:
    """Judge a saved run with the oracle alone."""
    recorded = saved_run(source)
    with damage_of(recorded, kinds=(PeerError, EmulatorError)):  # nothing but the record is run
        outcome = session.check(recorded)
    return finish(outcome, as_json)


# ---- what the commands are made of -------------------------------------------------------------


def seed_from(text: str | None) -> int:
    """The seed that was given, or one that is drawn.  Raises ``UserError``."""
    if text is None:
        return secrets.randbelow(DRAWN_SEED_END)
    seed = int(text, 16 if text[:2] in ("0x", "0X") else 10) if INTEGER.fullmatch(text) else -1
    if not 0 <= seed <= SEED_MAX:
        raise UserError("--seed", f"is {text!r}", f"an integer or hex, 0 to {SEED_MAX:#x}")
    return seed


def kernel_from(file: WorldFile, release: str, arch: str, settings: list[str]) -> Kernel:
    """The kernel of the options and the file.  Raises ``UserError`` that names the option."""
    file.kernel_of(release, arch)
    overrides: dict[str, object] = {}
    for setting in settings:
        switch, equals, value = setting.partition("=")
        if not equals or switch in ("release", "arch"):
            raise UserError("--set", f"is {setting!r}", "SWITCH=VALUE of a switch")
        overrides[switch.strip()] = switch_value(value.strip())
    return file.kernel_of(release, arch, overrides)


def switch_value(text: str) -> Any:
    """A switch's value as TOML has it; y, n, on and off are booleans, any other word a string."""
    words = {"y": True, "n": False, "on": True, "off": False}
    if text in words:
        return words[text]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def check_bounds(
    on: On, seconds: float | None, operations: int | None, stop_on: str, journal_max: str | None
) -> None:
    """Raise ``UserError`` for bounds that exclude each other or do not exist here."""
    if seconds is not None and operations is not None:
        raise UserError("--seconds, --operations", "exclude each other", "one of them")
    if on is On.simulator and seconds is not None:
        raise UserError("--seconds", "the simulator has no clock", "--operations")
    if on is On.simulator and journal_max is not None:
        raise UserError("--journal-max", "the simulator runs to the end", "--operations")
    if on is On.simulator and stop_on:
        raise UserError("--stop-on", "the simulator runs to the end", "--on processes")
    if stop_on not in ("", "any", *RULES):
        raise UserError("--stop-on", f"no rule {stop_on!r}", f"any, or one of {', '.join(RULES)}")


def bounded(spec: RunSpec, on: On, seconds: float | None) -> tuple[RunSpec, float | None]:
    """The run and the seconds of its feeding: an endless workload gets a bound."""
    if seconds is not None or spec.operations_max is not None or spec.workload.kind != "mixed":
        return spec, seconds
    if on is On.simulator:
        return replace(spec, operations_max=OPERATIONS), None
    return spec, SECONDS


def perform(
    spec: RunSpec,
    on: On,
    out: Path | None,
    as_json: bool,
    seconds: float | None = None,
    stop_on: str = "",
    size: int | None = None,
) -> int:
    """Run once, show progress meanwhile, then print; the exit status."""
    directory = new_run(spec.name, out)
    saved = spec.save(directory)
    if out is None:
        point_latest(directory)
    say(f"running {spec.name} on {on.value}, seed {spec.seed:#x}, in {directory}")
    with Progress(stderr()) as progress, interrupts(directory):
        if on is On.simulator:
            outcome = session.simulate(saved, directory)
        else:
            outcome = session.run_on_processes(saved, directory, seconds, progress, stop_on, size)
    machine.save_summary(outcome)
    return finish(outcome, as_json)


@contextmanager
def damage_of(
    recorded: Path, *, kinds: tuple[type[Exception], ...] = (PeerError,)
) -> Iterator[None]:
    """What does not parse or fit in what was saved is the input's fault.  Raises ``UserError``."""
    try:
        yield
    except ReplayDivergence as error:
        expected = "what this version plays"
        raise UserError(str(recorded), f"does not fit: {error}", expected) from None
    except kinds as error:
        raise UserError(str(recorded), f"is damaged: {error}", "a saved run") from None


def finish(outcome: Outcome, as_json: bool) -> int:
    """Print how a run came out; the exit status."""
    if as_json:
        print_json(machine.outcome_dict(outcome))
    else:
        print_outcome(stdout(), outcome)
    return outcome.exit_code


def print_json(value: dict[str, Any]) -> int:
    """One object on stdout."""
    typer.echo(machine.as_json(value))
    return codes.HELD


# ---- errors ------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status.  Every error is one line on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    rest = [word for word in given if word != "--debug"]  # may stand anywhere
    try:
        return int(app(rest, prog_name=PROGRAM, standalone_mode=False) or codes.HELD)
    except UserError as error:
        return complain(str(error), codes.USAGE, given)
    except typer.TyperException as error:
        hint = "" if isinstance(error, typer.BadParameter) else f" (see {PROGRAM} --help)"
        return complain(error.format_message().rstrip(".") + hint, codes.USAGE, given)
    except (Interrupted, KeyboardInterrupt) as error:
        return complain(f"interrupted{error}", codes.INTERRUPTED, given)
    except BrokenPipeError:
        mute(sys.stdout)
        return codes.BROKEN
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        if isinstance(error, OSError) and error.strerror:
            where = error.filename or "a file of the run, or the output"
            return complain(f"{where}: {error.strerror}", codes.BROKEN, given)
        return complain(f"{type(error).__name__}: {error}", codes.BROKEN, given)


def complain(problem: str, status: int, given: list[str]) -> int:
    """One line on stderr, and one object on stdout if that was asked for; the exit status."""
    line = words.plain(problem)
    write_line(f"{PROGRAM}: {line}", sys.stderr)
    if "--json" in given:
        write_line(machine.as_json({"exit_code": status, "error": line}), sys.stdout)
    return status


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):  # SIGTERM ends as Ctrl-C does
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, signal.default_int_handler)
    open_closed_streams()
    sys.exit(main())
