"""What the command line takes: one parser of all commands, and errors in our own words.

A command gets what was given by name.  What searches is not imported here: whoever asks for help,
or mistypes, does not wait for it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from mmurace.conform import SUITES
from mmurace.explorer.sample.policies import STRATEGIES
from mmurace.nodes.kernel.variant.release import NEWEST, OLDEST
from mmurace.nodes.plugins import load
from mmurace.protocol.errors import UserError
from mmurace.report import verdicts

PROGRAM: Final = "mmurace" if Path(sys.argv[0]).name == "mmurace" else "launch.py"
SECONDS_MIN: Final = 0.1
SHRINK_SECONDS: Final = 60.0
"""How long ``minimize`` may take, if nothing else is said."""
SHORTEST_RUNS: Final = 300
"""How many runs it then looks for something shorter."""
Number = TypeVar("Number", int, float)
STATUSES: Final = (
    "Exit status: 0 held, 1 violated, 2 bad usage or input, 3 inconclusive, 4 the run broke, "
    "5 no progress, 130 interrupted."
)


class On(StrEnum):
    """Which of the two brokers."""

    processes = "processes"
    simulator = "simulator"


class Form(StrEnum):
    """How an explanation is written."""

    terminal = "terminal"
    markdown = "markdown"
    mermaid = "mermaid"
    json = "json"


class Shown(StrEnum):
    """What a run is written for: a browser, or another tool's viewer."""

    html = "html"
    perfetto = "perfetto"
    shiviz = "shiviz"

    @property
    def ending(self) -> str:
        """Of the file's name."""
        return {"html": "html", "perfetto": "perfetto-trace", "shiviz": "shiviz.log"}[self]


class Parser(argparse.ArgumentParser):
    """One whose errors are raised; no option can be abbreviated."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def error(self, message: str) -> NoReturn:
        """Raises ``UserError`` with what argparse says."""
        if message.startswith("argument "):
            where, problem = message.removeprefix("argument ").split(": ", 1)
            raise UserError(where, problem)
        raise UserError("usage", f"{message} (see {PROGRAM} --help)")


# ---- values ------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """A time that is long enough for something to happen."""
    return _number(text, float, SECONDS_MIN, "seconds")


def count(text: str) -> int:
    """At least one."""
    return _number(text, int, 1, "an integer")


def count_or_none(text: str) -> int:
    """At least zero."""
    return _number(text, int, 0, "an integer")


def _number(text: str, kind: Callable[[str], Number], least: Number, what: str) -> Number:
    try:
        value = kind(text)
        if math.isfinite(value) and value >= least:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"is {text!r} (expected {what}, at least {least})")


def of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    """A value of an enumeration by its name."""

    def value(text: str) -> StrEnum:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r} (expected {_either(kind)})") from None

    return value


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


# ---- commands ----------------------------------------------------------------------------------


class _Version(argparse.Action):
    """Prints the version, which takes a while to find out: the code is hashed."""

    def __init__(self, **given: Any) -> None:
        super().__init__(nargs=0, **given)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and leave, as help does."""
        from mmurace.scenarios.versions import told

        sys.stdout.write(f"{told()}\n")
        parser.exit()


class Commands:
    """The parser, and the commands that it knows so far."""

    def __init__(self) -> None:
        self.parser = Parser(
            prog=PROGRAM,
            description="An emulator of the Linux mmu_notifier world in which its races happen.",
            epilog=STATUSES,
        )
        self.parser.add_argument(
            "--debug", action="store_true", help="tracebacks of our own faults"
        )
        self.parser.add_argument(
            "--plugin",
            metavar="FILE.py",
            help="a plug-in: a file, or one that is installed",
        )
        self.parser.add_argument(
            verdicts.OPTION, metavar="VERDICT",
            help="exit with 0 if it comes out so (held, violated, ...), else with 1",
        )  # fmt: skip
        self.parser.add_argument("--version", action=_Version, help="what this is, and leave")
        self._commands = self.parser.add_subparsers(metavar="COMMAND", dest="command")
        self.made: dict[str, Parser] = {}

    def add(self, name: str, what: str) -> Parser:
        """A command that can say what it found as JSON."""
        made = self.made[name] = self._commands.add_parser(
            name, help=what, description=what, epilog=STATUSES
        )
        made.add_argument(
            "--json", dest="as_json", action="store_true",
            help="one JSON object on stdout, all else on stderr",
        )  # fmt: skip
        return made


def _race(parser: Parser) -> None:
    parser.add_argument("race", metavar="ID", help="id or name of a race, or its file")


def _kernel(parser: Parser) -> None:
    parser.add_argument(
        "--kernel", default="",
        help="one of the race's kernels; else its first, where it happens",
    )  # fmt: skip


def _patch(parser: Parser) -> None:
    parser.add_argument("--patch", default="", metavar="NAME", help="a plug-in's, on that kernel")


def _on(parser: Parser, default: On) -> None:
    parser.add_argument(
        "--on", type=of(On), default=default, metavar="|".join(On),
        help=f"real processes, or all in one process; else {default}",
    )  # fmt: skip


def _seed(parser: Parser) -> None:
    parser.add_argument("--seed", help="integer or hex; drawn and printed if absent")


def _out(parser: Parser, what: str = "directory of the run; else runs/<time>-<name>") -> None:
    parser.add_argument("--out", type=Path, help=what)


def _driver(parser: Parser) -> None:
    parser.add_argument(
        "--driver", dest="drivers", action="append", default=[], metavar="PROFILE",
        help="a driver that is not the machine's usual one (see kernels)",
    )  # fmt: skip


def _stress(commands: Commands) -> None:
    what = "Run a workload under chaos until a time, an operation count or a violation."
    add = (parser := commands.add("stress", what)).add_argument
    add("--workload", default="mixed", metavar="mixed|FILE.strace",
        help="what runs; FILE is an strace log")  # fmt: skip
    add("--kernel", default="", metavar="RELEASE",
        help=f"a release from {OLDEST} to {NEWEST}; else v6.6.5")  # fmt: skip
    add("--arch", default="", help="x86, arm64 or ppc; else x86")
    _driver(parser)
    add("--set", dest="switches", action="append", default=[], metavar="SWITCH=VALUE",
        help="differ in a switch")  # fmt: skip
    add("--world", type=Path, metavar="FILE",
        help="TOML: nodes, sizes, kernel, mix; or machine or everything")  # fmt: skip
    add("--chaos", help="chaos rules: FILE.toml, or a name in broker/configs")
    add("--seconds", type=seconds, help="feed operations for so long")
    add("--operations", type=count, help="feed so many")
    add("--stop-on", default="", metavar="RULE",
        help="stop feeding once it is broken; any: some rule")  # fmt: skip
    add("--journal-max", metavar="SIZE",
        help="stop feeding when the journals have 500M, 2G, ...")  # fmt: skip
    _on(parser, On.processes)
    _seed(parser)
    _out(parser)


def _repro(commands: Commands) -> None:
    parser = commands.add("repro", "Provoke one race of the catalogue with its recipe.")
    _race(parser)
    _kernel(parser)
    _patch(parser)
    _on(parser, On.processes)
    _seed(parser)
    _out(parser)


def _list(commands: Commands) -> None:
    add = commands.add("list", "List the catalogue of races, or the rules.").add_argument
    add("--rules", action="store_true", help="the oracle's rules")
    add(
        "--subsystem",
        default="",
        metavar="NAME",
        help="races of an owner of switches, as kernels shows them",
    )
    add("--rule", default="", help="races that break it")
    add("--release", default="", help="races of that kernel")
    add("--cve", action="store_true", help="races with a CVE")


def _kernels(commands: Commands) -> None:
    parser = commands.add("kernels", "Say what releases do, or how two of them differ.")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help="v6.1, v6.6.5, ...")
    parser.add_argument("--arch", default="x86", help="x86, arm64 or ppc; else x86")
    _driver(parser)


def _explore(commands: Commands) -> None:
    add = (parser := commands.add("explore", "Run many schedules of one race.")).add_argument
    _race(parser)
    _kernel(parser)
    _patch(parser)
    add("--strategy", default="", metavar="NAME",
        help=f"one of {', '.join(STRATEGIES)}; else portfolio")  # fmt: skip
    add("--exhaustive", dest="exhaust", action="store_true",
        help="all of a small scope: --strategy stateful")  # fmt: skip
    add("--scope", default="", metavar="NAME",
        help="with --exhaustive: another scope of the race")  # fmt: skip
    add("--schedules", type=count, help="run at most so many")
    add("--seconds", type=seconds, help="run for so long")
    add("--keep-going", action="store_true", help="go on after a violation")
    add("--recipe", action=argparse.BooleanOptionalAction, default=False,
        help="with the race's chaos rules, or without")  # fmt: skip
    add("--explain", dest="explanation", action=argparse.BooleanOptionalAction, default=True,
        help="say why what was found fails, or do not")  # fmt: skip
    _seed(parser)
    _out(parser)


def _matrix(commands: Commands) -> None:
    what = "Run every race on every kernel: beside what is expected, or stock beside patched."
    add = (parser := commands.add("matrix", what)).add_argument
    add("--race", dest="races", action="append", default=[], metavar="ID", help="this one, ...")
    add("--patch", default="", metavar="NAME", help="a plug-in's; shows only what it changes")
    add("--schedules", type=count, help="run so many of each without its recipe")
    add("--jobs", type=count, default=1, help="in so many processes")
    add("--junit", type=Path, metavar="FILE", help="write the rows as tests, as JUnit XML")
    _seed(parser)


def _hunt(commands: Commands) -> None:
    what = "Draw small programs and explore each; what breaks is cut down and written as a race."
    add = (parser := commands.add("hunt", what)).add_argument
    add("--kernel", default="", metavar="RELEASE",
        help=f"a release from {OLDEST} to {NEWEST}; else v6.6.5")  # fmt: skip
    add("--arch", default="", help="x86, arm64 or ppc; else x86")
    add("--set", dest="switches", action="append", default=[], metavar="SWITCH=VALUE",
        help="differ in a switch")  # fmt: skip
    _driver(parser)
    _patch(parser)
    add("--against", default="", metavar="RELEASE",
        help="keep only what this kernel, on the same architecture, does not show")  # fmt: skip
    add("--seconds", type=seconds, help="draw programs for so long")
    add("--programs", type=count, help="draw so many; else 1,000")
    add("--schedules", type=count, default=100, help="run so many of each; else 100")
    add("--jobs", type=count, default=1, help="in so many processes")
    add("--resume", type=Path, metavar="DIR", help="go on with a hunt, wherever it ended")
    add("--explain", dest="explanation", action=argparse.BooleanOptionalAction, default=True,
        help="say in a page beside each why it fails, or do not")  # fmt: skip
    _seed(parser)
    _out(parser, "directory of the hunt; else runs/<time>-hunt-<kernel>")


def _conform(commands: Commands) -> None:
    what = "Hold operations against tables of what real kernels did."
    add = commands.add("conform", what).add_argument
    shown = "; ".join(f"{suite}: {what}" for suite, what in SUITES.items())
    add("suite", choices=tuple(SUITES), metavar="|".join(SUITES), help=shown)
    add("files", type=Path, nargs="+", metavar="FILE.tsv", help="a table")
    add("--kernel", default="", metavar="RELEASE", help="else the one that the table names")
    add("--set", dest="switches", action="append", default=[], metavar="SWITCH=VALUE",
        help="differ in a switch")  # fmt: skip


def _of_what_was_saved(commands: Commands) -> None:
    replay = commands.add("replay", "Run a recorded schedule again, delivery by delivery.")
    replay.add_argument("source", type=Path, metavar="DIR", help="a run, or the schedule in it")
    _on(replay, On.simulator)
    _out(replay)
    what = "Find the shortest schedule with the same violation, and write it to a file."
    add = (minimize := commands.add("minimize", what)).add_argument
    add("source", type=Path, metavar="FILE", help="a run, or a schedule file")
    add("--rule", default="", help="the violation of this rule, if there are many")
    add("--seconds", type=seconds, default=SHRINK_SECONDS, help="end after so long")
    add("--search", type=count_or_none, default=SHORTEST_RUNS, metavar="RUNS",
        help="how many look for a shorter one")  # fmt: skip
    _out(minimize, "the schedule file to write")
    what = "Say why a schedule fails: the interleaving, what decides it, what was owed, what cures."
    add = commands.add("explain", what).add_argument
    add("source", type=Path, metavar="FILE", help="a schedule file, or a run")
    add("--format", dest="form", type=of(Form), default=Form.terminal, metavar="|".join(Form),
        help="how it is written")  # fmt: skip
    what = "Write a page that shows a violation, for a browser."
    add = (report := commands.add("report", what)).add_argument
    add("source", type=Path, metavar="FILE", help="a schedule file, or a run")
    add("--format", dest="shown", type=of(Shown), default=Shown.html, metavar="|".join(Shown),
        help="a page, a trace for ui.perfetto.dev, or a log for ShiViz")  # fmt: skip
    _out(report, "the file to write; else report.html in the run, or beside the schedule")
    check = commands.add("check", "Judge a saved run with the oracle alone.")
    check.add_argument("source", type=Path, metavar="DIR", help="a saved run")


def _step(commands: Commands) -> None:
    what = "Go through a run delivery by delivery, forwards and back, or to what else could come."
    add = commands.add("step", what).add_argument
    add("source", type=Path, nargs="?", metavar="FILE", help="a schedule file, or a run")
    add("--at", type=count_or_none, metavar="N", help="begin where N deliveries have been made")
    add("--dap", action="store_true",
        help="speak the Debug Adapter Protocol on stdin and stdout")  # fmt: skip


def parser_of_all() -> Parser:
    """The parser of the command line, with every command."""
    return all_commands().parser


def all_commands() -> Commands:
    """Every command, with its parser."""
    commands = Commands()
    _stress(commands)
    _list(commands)
    show = commands.add("show", "Tell all about one race, or one rule.")
    show.add_argument("race", metavar="ID", help="id or name of a race, its file, or a rule")
    _kernels(commands)
    _repro(commands)
    _explore(commands)
    _matrix(commands)
    _hunt(commands)
    _conform(commands)
    _of_what_was_saved(commands)
    _step(commands)
    what = "Print the JSON Schema of a kind of TOML file, with what plug-ins declare."
    schema = commands.add("schema", what)
    schema.add_argument("name", metavar="race|world|chaos", help="what the file is of")
    what = "Print what completes this program's words in a shell, or its manual page."
    made = commands.add("completion", what)
    made.add_argument("shell", metavar="bash|zsh|tcsh|fish|man", help="for which; man: the page")
    commands.add("tour", "Show one race where it happens and where it does not.")
    return commands


def known_commands() -> frozenset[str]:
    """Names of all commands."""
    return frozenset(all_commands().made)


def parse(words: list[str]) -> dict[str, Any]:
    """What was given, by name; ``command`` is the command.

    ``--debug`` and ``--plugin`` may stand anywhere.

    Raises ``UserError``, and ``SystemExit`` once it has printed the help that was asked for.
    """
    expected = "a file FILE.py, or an installed one"
    bare = [word for word in words if word != "--debug"]
    rest, plugins = verdicts.taken_out("--plugin", bare, expected)
    load(plugins)
    given = vars(parser_of_all().parse_args(rest))
    if given["command"] is None:
        raise UserError("usage", f"no command (see {PROGRAM} --help)")
    for option in ("debug", "plugin", "expect", "version"):
        del given[option]
    return given
