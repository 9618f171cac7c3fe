"""The command line of the mmu_notifier emulator.  It parses, calls and prints.

Exit status: 0 held; 1 violated; 2 bad usage or input; 3 inconclusive; 4 the run itself broke;
5 no progress after healing; 130 interrupted.

A command imports what it runs, so that ``list`` does not wait for the search engine.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # the imports take a while, and a signal may come meanwhile
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, lambda *_: os._exit(130))

    def cannot_start(kind: type[BaseException], error: BaseException, _: object) -> None:
        """An import failed, for want of memory perhaps: that is not the status of a violation."""
        print(f"launch.py: cannot start: {kind.__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(4)

    sys.excepthook = cannot_start

import re
import secrets
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmurace.explorer.run import outcome as codes
from mmurace.nodes import plugins
from mmurace.oracle.rules.table import Rule, rule_of
from mmurace.oracle.rules.table import rules as known_rules
from mmurace.protocol.errors import EmulatorError, PeerError, ReplayDivergence, UserError
from mmurace.protocol.signals import held
from mmurace.report import formats, machine
from mmurace.report.arguments import PROGRAM, Form, On, parse
from mmurace.report.directory import new_run, point_to, replay_name, saved_record
from mmurace.report.interrupts import Interrupted, interruptible, interrupts
from mmurace.report.progress import Progress
from mmurace.report.schedules import other_plugins
from mmurace.report.screen import (
    open_closed_streams,
    say,
    settle,
    stderr,
    stdout,
    write_line,
    write_out,
)
from mmurace.report.shortage import shortage
from mmurace.report.terminal import print_outcome
from mmurace.scenarios import catalogue
from mmurace.scenarios.spec import RunSpec

if TYPE_CHECKING:
    from mmurace.explorer.run.outcome import Outcome
    from mmurace.nodes.kernel.variant import Kernel
    from mmurace.scenarios.world_file import WorldFile

SEED_MAX: Final = (1 << 63) - 1
"""The largest integer that TOML promises to hold."""
DRAWN_SEED_END: Final = 1 << 32
"""A drawn seed is short enough to be typed."""
SECONDS: Final = 30.0
"""How long ``stress`` feeds the endless workload, if nothing else is said."""
OPERATIONS: Final = 20_000
"""The same on the simulator, which has no clock."""
INTEGER: Final = re.compile(r"[0-9]{1,999}|0[xX][0-9a-fA-F]{1,999}")  # int() has a bound

# ---- commands ----------------------------------------------------------------------------------


def stress(
    workload: str,
    kernel: str,
    arch: str,
    switches: list[str],
    world: Path | None,
    chaos: str | None,
    seconds: float | None,
    operations: int | None,
    stop_on: str,
    journal_max: str | None,
    on: On,
    seed: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Run a workload under chaos until a time, an operation count or a violation."""
    from mmurace.broker.chaos import load_rules
    from mmurace.broker.chaos_config import check_names
    from mmurace.explorer.run.stop import size_from
    from mmurace.scenarios.runs import workload_run
    from mmurace.scenarios.world_file import load_world

    check_bounds(on, seconds, operations, stop_on, journal_max)
    file = load_world(world)
    variant = kernel_from(file, kernel, arch, switches)
    rules = None if chaos is None else load_rules(chaos)
    spec = workload_run(workload, variant, seed_from(seed), rules, operations, file)
    if rules is not None:
        check_names(rules, spec.world.nodes(), (p.name for p in spec.programs()), str(chaos))
    spec, seconds = bounded(spec, on, seconds)
    size = None if journal_max is None else size_from(journal_max, "--journal-max")
    return perform(spec, on, out, as_json, seconds, stop_on, size)


def list_races(rules: bool, as_json: bool) -> int:
    """List the catalogue of races, or the rules."""
    from mmurace.report import catalogue as pages

    if rules:
        return list_rules(as_json)
    races = catalogue.load_all().values()
    if as_json:
        return print_json({"races": [pages.race_dict(race) for race in races]})
    console = stdout()
    console.print(pages.listing_of(races, console.width))
    return codes.HELD


def list_rules(as_json: bool) -> int:
    """List the oracle's rules."""
    from mmurace.report import rules as pages

    if as_json:
        return print_json({"rules": [pages.rule_dict(rule) for rule in known_rules()]})
    stdout().print(pages.rules_table())
    return codes.HELD


def kernels(releases: list[str], arch: str, as_json: bool) -> int:
    """Say what releases do, or how two of them differ."""
    from mmurace.nodes.kernel.variant import preset
    from mmurace.nodes.kernel.variant.release import NEWEST
    from mmurace.report import kernels as pages

    presets = [preset(release, arch, where="kernels") for release in releases or [str(NEWEST)]]
    if len(releases) == 2:
        if as_json:
            return print_json(pages.differences_dict(*presets))
        write_out(pages.differences_text(*presets))
    elif as_json:
        print_json(pages.table_dict(presets))
    else:
        stdout().print(pages.table_of(presets))
    return codes.HELD


def show_rule(rule: Rule, as_json: bool) -> int:
    """Tell all about one rule."""
    from mmurace.report import rules as pages

    if as_json:
        return print_json(pages.rule_dict(rule))
    write_out(pages.rule_page(rule))
    return codes.HELD


def show(race: str, as_json: bool) -> int:
    """Tell all about one race, or one rule."""
    from mmurace.report import catalogue as pages

    rule = rule_of(race)
    if rule is not None:
        return show_rule(rule, as_json)
    found = catalogue.find(race)
    if as_json:
        return print_json(pages.race_dict(found))
    write_out(pages.page_of(found))
    return codes.HELD


def repro(
    race: str, kernel: str, patch: str, on: On, seed: str | None, out: Path | None, as_json: bool
) -> int:
    """Provoke one race of the catalogue with its recipe."""
    spec = catalogue.find(race).run(kernel, seed_from(seed)).patched(patch)
    return perform(spec, on, out, as_json)


def explore(
    race: str,
    kernel: str,
    patch: str,
    strategy: str,
    exhaust: bool,
    scope: str,
    schedules: int | None,
    seconds: float | None,
    keep_going: bool,
    recipe: bool,
    explanation: bool,
    seed: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Run many schedules of one race in the simulator."""
    from mmurace.explorer.sample import explore as exploration
    from mmurace.report import exploration as explored
    from mmurace.report import searches

    known = catalogue.find(race)
    engine = searches.engine_from(strategy, exhaust, keep_going, recipe, scope)
    if engine:
        spec = known.run_in_scope(kernel, seed_from(seed), scope).patched(patch)
        return searches.search(spec, engine, schedules, seconds, out, as_json, explanation)
    strategy = strategy or "portfolio"
    spec = known.run(kernel, seed_from(seed)).patched(patch)
    spec = spec if recipe else replace(spec, chaos=None)
    options = exploration.Options(strategy, schedules, seconds, "" if keep_going else "any")
    say(f"exploring {spec.name} with {strategy}, seed {spec.seed:#x}")
    with Progress(stderr(), explored.explore_line) as progress:
        found = exploration.explore(spec, options, progress)
    outcome = None if found.finding is None else searches.record(found, out)
    if as_json:
        told = searches.told_dict(outcome, explanation)
        print_json(explored.exploration_dict(found) | told)
    else:
        explored.print_exploration(stdout(), found)
        searches.tell(outcome, explanation)
    return found.exit_code


def matrix(
    races: list[str], patch: str, schedules: int | None, jobs: int, seed: str | None, as_json: bool
) -> int:
    """Run every race on every kernel: beside what is expected, or stock beside patched."""
    from mmurace.report.matrix import matrix as run_all

    return run_all(races, patch, schedules, jobs, seed_from(seed), as_json)


def replay(source: Path, on: On, out: Path | None, as_json: bool) -> int:
    """Run a recorded schedule again, delivery by delivery."""
    from mmurace.explorer.run import session
    from mmurace.explorer.run.replay import replay_file
    from mmurace.explorer.run.schedule_file import is_schedule_file
    from mmurace.report.schedules import run_or_schedule

    recorded = run_or_schedule(source)
    directory = new_run(replay_name(recorded), out)
    say(f"replaying {recorded} on {on.value} in {directory}")
    try:
        with damage_of(recorded), interrupts(directory):
            again = replay_file if is_schedule_file(recorded) else session.replay
            outcome = again(recorded, on.value, directory)
    except (UserError, OSError):
        with suppress(OSError):  # it holds something: then that is worth keeping
            directory.rmdir()
        raise
    if out is None:
        point_to(directory)
    return finish(outcome, as_json)


def minimize(
    source: Path, rule: str, seconds: float, search: int, out: Path | None, as_json: bool
) -> int:
    """Find the shortest schedule with the same violation, and write it to a file."""
    from mmurace.explorer.run import schedule_file
    from mmurace.explorer.shrink import minimize as minimizer
    from mmurace.report import minimizing
    from mmurace.report.schedules import minimized_file, run_or_schedule

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
        write_out(minimizing.minimized_text(found, str(file), seconds))
    cut_short = found.interrupted and not minimizing.out_of_time(found, seconds)
    return codes.INTERRUPTED if cut_short else codes.VIOLATED


def explain(source: Path, form: Form, as_json: bool) -> int:
    """Say why a schedule fails: the interleaving, what decides it, what was owed, what cures it."""
    from mmurace.report import explaining, interleaving

    with damage_of(source):
        explanation = explaining.explanation_of(source)
    if as_json or form is Form.json:
        print_json(interleaving.as_dict(explanation))
    else:
        write_out(interleaving.written(explanation, form, stdout().width).rstrip("\n"))
    return codes.VIOLATED


def check(source: Path, as_json: bool) -> int:
    """Judge a saved run with the oracle alone."""
    from mmurace.explorer.run import session

    recorded = saved_record(source)
    with damage_of(recorded, kinds=(PeerError, EmulatorError)):  # nothing but the record is run
        outcome = session.check(recorded)
    return finish(outcome, as_json, saved=False)


COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "stress": stress, "list": list_races, "show": show, "kernels": kernels, "repro": repro,
    "explore": explore, "replay": replay, "minimize": minimize, "explain": explain,
    "check": check, "matrix": matrix,
}  # fmt: skip
"""They take by name what ``report/arguments.py`` gives."""


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
    known = [rule.id for rule in known_rules()]
    if stop_on not in ("", "any", *known):
        raise UserError("--stop-on", f"no rule {stop_on!r}", f"any, or one of {', '.join(known)}")


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
    with held():
        from mmurace.explorer.run import session

    directory = new_run(spec.name, out)
    with interrupts(directory), Progress(stderr()) as progress:
        saved = save(spec, directory)
        if out is None:
            point_to(directory)
        say(f"running {spec.name} on {on.value}, seed {spec.seed:#x}, in {directory}")
        if on is On.simulator:
            outcome = session.simulate(saved, directory)
        else:
            outcome = session.run_on_processes(saved, directory, seconds, progress, stop_on, size)
    return finish(outcome, as_json)


def save(spec: RunSpec, directory: Path) -> RunSpec:
    """Write what a run is; a directory in which that cannot be is not left behind."""
    try:
        return spec.save(directory)
    except OSError:
        with suppress(OSError):
            directory.rmdir()
        raise


@contextmanager
def damage_of(
    recorded: Path, *, kinds: tuple[type[Exception], ...] = (PeerError,)
) -> Iterator[None]:
    """What does not parse or fit in what was saved is the input's fault.  Raises ``UserError``."""
    for name in other_plugins(recorded):
        say(f"{recorded} was made with another {name}")
    try:
        yield
    except ReplayDivergence as error:
        expected = "what this version plays"
        raise UserError(str(recorded), f"does not fit: {error}", expected) from None
    except kinds as error:
        raise UserError(str(recorded), f"is damaged: {error}", "a saved run") from None


def finish(outcome: Outcome, as_json: bool, saved: bool = True) -> int:
    """Print how a run came out, and which of its files could not be written; the exit status.

    ``saved``: first put a summary into its directory.
    """
    if saved:
        machine.save_summary(outcome)
    if as_json:
        print_json(machine.outcome_dict(outcome))
    else:
        print_outcome(stdout(), outcome)
    for problem in outcome.unwritten:
        say(f"{PROGRAM}: {problem}")
    return outcome.exit_code


def print_json(value: dict[str, Any]) -> int:
    """One object on stdout."""
    write_out(machine.as_json(value))
    return codes.HELD


# ---- errors ------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status.  Every error is one line on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = parsed(given)
        return codes.HELD if options is None else COMMANDS[options.pop("command")](**options)
    except UserError as error:
        return complain(str(error), codes.USAGE, given)
    except (Interrupted, KeyboardInterrupt) as error:
        return complain(f"interrupted{error}", codes.INTERRUPTED, given)
    except (Exception, plugins.PluginLoops) as error:
        if "--debug" in given:
            traceback.print_exc()
        if blamed := plugins.said_of(error):
            return complain(blamed, codes.BROKEN if plugins.ran(error) else codes.USAGE, given)
        problem = shortage(error) or f"{type(error).__name__}: {error}"
        return complain(problem, codes.BROKEN, given)


def parsed(given: list[str]) -> dict[str, Any] | None:
    """What was asked for; None if that was help, which has been printed.  Raises ``UserError``."""
    try:
        return parse(given)
    except SystemExit:
        return None


def complain(problem: str, status: int, given: list[str]) -> int:
    """One line on stderr, and one object on stdout if that was asked for; the exit status."""
    line = formats.plain(problem)
    write_line(f"{PROGRAM}: {line}", sys.stderr)
    if "--json" in given:
        write_line(machine.as_json({"exit_code": status, "error": line}), sys.stdout)
    return status


if __name__ == "__main__":
    sys.excepthook = sys.__excepthook__
    open_closed_streams()
    status = interruptible(main)
    settle()
    sys.exit(status)
