"""Plug-ins from outside: a NIC of sixty lines, a patch of twenty, and whatever is wrong with them.

A plug-in stays in the process that has imported it, so each of these has a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runs import nothing_left_behind as nothing_left_behind

ROOT = Path(__file__).resolve().parents[1]
NIC = ROOT / "tests" / "data" / "plugins" / "nic.py"
DATA = NIC.parent
RACE = NIC.with_suffix(".toml")
RUN_SECONDS = 120.0
SIMULATED = ("repro", str(RACE), "--on", "simulator", "--seed", "1")
PROCESSES = ("repro", str(RACE), "--on", "processes", "--seed", "1")
ENGINES = pytest.mark.parametrize(
    "engine", [SIMULATED, pytest.param(PROCESSES, marks=pytest.mark.processes)],
    ids=["simulator", "processes"],
)  # fmt: skip


@dataclass
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


def run(directory: Path, *words: str, plugin: Path | None = None) -> Done:
    """The command line in a process of its own, in an empty directory."""
    given = [*words, "--plugin", str(plugin)] if plugin else [*words]
    done = subprocess.run(
        [sys.executable, "-m", "mmurace", *given], cwd=directory, capture_output=True, text=True,
        timeout=RUN_SECONDS, check=False, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def edited(directory: Path, old: str, new: str, name: str = "nic.py") -> Path:
    """The NIC with one thing changed."""
    text = NIC.read_text()
    assert text.count(old) == 1, old
    path = directory / name
    path.write_text(text.replace(old, new))
    return path


def line_of(path: Path, words: str) -> int:
    """The number of the one line with these words."""
    found = [n for n, line in enumerate(path.read_text().splitlines(), 1) if words in line]
    assert len(found) == 1, found
    return found[0]


# ---- the NIC -----------------------------------------------------------------------------------


def test_a_nic_is_sixty_lines() -> None:
    assert len(NIC.read_text().splitlines()) <= 60


def test_without_the_retry_check_it_is_found_and_told_in_its_own_words(tmp_path: Path) -> None:
    told = run(tmp_path, "explore", str(RACE), "--schedules", "1000", "--seed", "3", plugin=NIC)
    assert told.status == 1
    assert re.match("VIOLATED: .*S4 by nic0", told.out)
    for word in ("mtt filled", "device store to 0x10000", "invalidate_range_start(nic0"):
        assert word in told.out
    assert "Safe under this very schedule: nic_fault = retries (here installs)" in told.out
    assert re.search(r"cut down from \d+ deliveries to [34] operations", " ".join(told.out.split()))
    (schedule,) = tmp_path.glob("runs/2*/minimal.schedule.toml")
    assert run(tmp_path, "replay", str(schedule), plugin=NIC).status == 1


def test_with_the_retry_check_it_holds(tmp_path: Path) -> None:
    words = ("explore", str(RACE), "--kernel", "retries", "--schedules", "2000", "--seed", "5")
    told = run(tmp_path, *words, "--json", plugin=NIC)
    found = json.loads(told.out)
    assert (told.status, found["schedules"]) == (0, 2000)
    assert found["entered"] > 1000


def test_a_small_scope_is_searched_to_the_end(tmp_path: Path) -> None:
    words = ("explore", str(RACE), "--exhaustive", "--kernel")
    good = run(tmp_path, *words, "retries", plugin=NIC)
    assert (good.status, "HELD, exhaustive" in good.out) == (0, True)
    assert run(tmp_path, *words, "no-retry", plugin=NIC).status == 1


@ENGINES
@pytest.mark.parametrize(("kernel", "status"), [("no-retry", 1), ("retries", 0)])
def test_its_recipe_reproduces_it(
    engine: tuple[str, ...], kernel: str, status: int, tmp_path: Path
) -> None:
    told = run(tmp_path, *engine, "--kernel", kernel, plugin=NIC)
    assert told.status == status
    assert "met between" in told.out


@pytest.mark.processes
def test_a_run_on_processes_replays_in_the_simulator(tmp_path: Path) -> None:
    assert run(tmp_path, *PROCESSES, "--out", "run", plugin=NIC).status == 1
    assert run(tmp_path, "replay", "run", plugin=NIC).status == 1


# ---- the run and its plug-in -------------------------------------------------------------------


def test_without_its_plugin_a_run_is_refused_by_name(tmp_path: Path) -> None:
    assert run(tmp_path, *SIMULATED, "--out", "run", plugin=NIC).status == 1
    for command in ("replay", "check", "minimize", "explain"):
        told = run(tmp_path, command, "run")
        assert told.status == 2
        assert f"made with the plug-in 'nic' (expected --plugin {NIC})" in told.err


def test_a_race_of_a_plugin_without_it_is_refused(tmp_path: Path) -> None:
    told = run(tmp_path, "explore", str(RACE))
    assert told.status == 2
    assert "unknown switch 'nic_fault'" in told.err


def test_another_text_is_said(tmp_path: Path) -> None:
    assert run(tmp_path, *SIMULATED, "--out", "run", plugin=NIC).status == 1
    same = run(tmp_path, "replay", "run", plugin=NIC)
    assert (same.status, "another" in same.err) == (1, False)
    other = edited(tmp_path, '"""The NIC: its', '"""The NIC; its')
    told = run(tmp_path, "replay", "run", plugin=other)
    assert told.status == 1
    assert "run was made with another nic.py" in told.err


# ---- wrong before anything runs ----------------------------------------------------------------

BEGIN = '"""An RDMA NIC with on-demand paging: an own translation table, kept right by'
IMPORT = "from mmurace import plugin as api\n"
NO_SUCH = '@api.replaces("mm/mprotect.c", "change_pte_rnage")\nasync def new(*given): ...\n'
NO_FILE = '@api.replaces("mm/mprotekt.c", "change_pte_range")\nasync def new(*given): ...\n'
NOT_ASYNC = '@api.replaces("mm/mprotect.c", "change_pte_range")\ndef new(*given): ...\n'
TOO_FEW = '@api.replaces("mm/mprotect.c", "change_pte_range")\nasync def new(cpu): ...\n'
RULE = 'api.add_rule(api.Rule("S1", "harm", "mine", "Mine.", "me"))\n'
ACK = "\nclass Ack(api.Request[api.Ack], frozen=True): ...\nclass NicDma("
AT_IMPORT = {
    "syntax": ("class Nic(api.ShadowPart, frozen=True):", "class Nic(", "is not Python"),
    "indentation": ("    CACHE, ACCESS", "   CACHE, ACCESS", "is not Python"),
    "no such function": (IMPORT, IMPORT + NO_SUCH, "no function 'change_pte_rnage' of mm/"),
    "no such file": (IMPORT, IMPORT + NO_FILE, "no file 'mm/mprotekt.c' is modelled"),
    "not async": (IMPORT, IMPORT + NOT_ASYNC, "has to be an async function"),
    "too few arguments": (IMPORT, IMPORT + TOO_FEW, "(mm/mprotect.c) takes (cpu, gather"),
    "loop": (IMPORT, IMPORT + "while True: pass\n", "does not come back within 5 s"),
    "exit": (IMPORT, IMPORT + "raise SystemExit(0)\n", "SystemExit: 0"),
    "error": (IMPORT, IMPORT + "1 / 0\n", "ZeroDivisionError: division by zero"),
    "no such name": ("api.ShadowNode)", "api.ShadowNoed)", "no attribute 'ShadowNoed'"),
    "name taken": ('register_shadow("nic"', 'register_shadow("kvm"', "secondary 'kvm' is"),
    "key taken": ('"nics", Nic', '"vms", Nic', "key 'vms' is registered twice"),
    "cache taken": ('FAULT = "mtt"', 'FAULT = "spte"', "cache 'spte' is registered twice"),
    "switch taken": ("    nic_fault: Lit", "    kvm_retry: Lit", "switch 'kvm_retry' is"),
    "rule taken": (IMPORT, IMPORT + RULE, "rule 'S1' is there twice"),
    "message taken": ("\nclass NicDma(", ACK, "there is a message 'Ack' already"),
    "no access": ("async def access(", "async def axess(", "does not say what an access does"),
}  # fmt: skip


@pytest.mark.parametrize("case", AT_IMPORT)
def test_what_is_wrong_at_import_is_told_by_line(case: str, tmp_path: Path) -> None:
    old, new, words = AT_IMPORT[case]
    path = edited(tmp_path, old, new)
    told = run(tmp_path, *SIMULATED, plugin=path)
    assert told.status == 2
    assert words in told.err
    assert re.match(rf"\S+: {re.escape(str(path))}:\d+: ", told.err)
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (IMPORT, IMPORT + "1 / 0\n"),
        (IMPORT, IMPORT + "while 1: pass\n"),
        ("\nclass Nic(", "\nclass"),
    ],
)
def test_a_file_beside_one_is_named_as_it_was_given(old: str, new: str, tmp_path: Path) -> None:
    edited(tmp_path, old, new)
    told = run(tmp_path, *SIMULATED, plugin=Path("nic.py"))
    assert told.status == 2
    assert re.match(r"\S+: nic\.py:\d+: ", told.err)


def test_two_plugins_of_one_name_are_told_apart(tmp_path: Path) -> None:
    other = edited(tmp_path, '"nics", Nic', '"nicks", Nic')
    told = run(tmp_path, *SIMULATED, "--plugin", str(NIC), plugin=other)
    assert told.status == 2
    assert "another plug-in 'nic' is loaded" in told.err


def test_the_same_one_twice_is_once(tmp_path: Path) -> None:
    assert run(tmp_path, *SIMULATED, "--plugin", str(NIC), plugin=NIC).status == 1


@pytest.mark.parametrize("given", ["nothere.py", "nothere", "", str(RACE)])
def test_what_is_no_plugin_is_refused(given: str, tmp_path: Path) -> None:
    told = run(tmp_path, *SIMULATED, f"--plugin={given}")
    assert (told.status, told.out) == (2, "")


# ---- wrong while it runs -----------------------------------------------------------------------

LOOKUP = "page = await self.get_user_page(dma.mm, dma.address, dma.write)"
FOO = "class Foo(api.Request[api.Ack], frozen=True):\n    pass\n\n\nclass Nic("
JUDGE = """

class Judge:
    def record(self, record, op, event):
        {}


api.add_rule(api.Rule("X1", "harm", "mine", "Mine.", "me", judge=lambda *_: Judge()))
api.register_shadow("""
CATCHES = """while True:
                try: len([])
                except Exception: pass"""
RUNNING = {
    "error in an access": (LOOKUP, "page = {}['x']", "(access): KeyError: 'x'"),
    "error in a callback": ("self.open += 1", "self.open += ''", "(invalidate_range_start): Type"),
    "error in a constructor": ("self.seq = self.open = 0", "self.seq = 1 / 0", "(__init__): Zero"),
    "loop": (LOOKUP, "while True: pass", "(access): does not come back within 5 s"),
    "loop that catches": (LOOKUP, CATCHES, "does not come back within 5 s"),
    "endless retry": (LOOKUP, f"while True: {LOOKUP}", "has sent 4096 requests for one"),
    "no message": (LOOKUP, 'await self.port.call("cpu0", "hello")', "sends 'hello', which is no"),
    "to nobody": (LOOKUP, 'await self.port.call("cpu7", api.GetUserPage("nic0", "mm0", 0, True))',
                  "sends GetUserPage to 'cpu7', which is not in this world"),
    "of an mm that is not": (LOOKUP, 'page = await self.get_user_page("mm7", dma.address, True)',
                             "plug-in nic.py: GetUserPage from nic0 to cpu1: "),
    "wrong value": (LOOKUP, 'await self.get_user_page("mm0", "x", True)', "with a wrong value"),
    "no result": ("                return 0\n", "                return None\n", "wrong value"),
    "no record": (LOOKUP, f"self.port.emit('hello'); {LOOKUP}", "records 'hello'"),
    "error in a rule": ("\napi.register_shadow(", JUDGE.format("1 / 0"), "(record): Zero"),
    "loop in a rule": ("\napi.register_shadow(", JUDGE.format("while 1: pass"), "(record): does"),
}  # fmt: skip


@ENGINES
@pytest.mark.parametrize("case", RUNNING)
def test_what_is_wrong_while_it_runs_is_no_verdict(
    case: str, engine: tuple[str, ...], tmp_path: Path
) -> None:
    old, new, words = RUNNING[case]
    told = run(tmp_path, *engine, "--out", "run", plugin=edited(tmp_path, old, new))
    assert told.status == 4
    assert "plug-in nic.py" in told.err
    assert words in told.err
    assert told.out == ""
    assert (tmp_path / "run" / "run.toml").exists()


@ENGINES
def test_a_message_that_nobody_handles_is_no_verdict(
    engine: tuple[str, ...], tmp_path: Path
) -> None:
    path = edited(tmp_path, "class Nic(", FOO)
    path.write_text(path.read_text().replace(LOOKUP, 'await self.port.call("cpu0", Foo())'))
    told = run(tmp_path, *engine, plugin=path)
    assert (told.status, told.out) == (4, "")
    assert "plug-in nic.py: Foo from nic0 to cpu0: cpu0 does not handle Foo" in told.err


def test_a_loop_of_a_file_beside_one_is_found(tmp_path: Path) -> None:
    edited(tmp_path, LOOKUP, "while True: pass")
    told = run(tmp_path, *SIMULATED, plugin=Path("nic.py"))
    assert told.status == 4
    assert "(access): does not come back within 5 s" in told.err


def test_an_exploration_ends_with_it_too(tmp_path: Path) -> None:
    path = edited(tmp_path, LOOKUP, "page = {}['x']")
    for words in (("explore", str(RACE)), ("explore", str(RACE), "--exhaustive")):
        told = run(tmp_path, *words, "--json", plugin=path)
        assert told.status == 4
        said = json.loads(told.out)
        assert said["exit_code"] == 4
        line = line_of(path, "page = {}['x']")
        assert f"plug-in nic.py:{line} (access): KeyError: 'x'" in said["error"]


# ---- a rule ------------------------------------------------------------------------------------

FORBIDDEN = """

class NoDma:
    def __init__(self, world, state, found):
        self.found = found

    def record(self, record, op, event):
        if isinstance(record, api.records.OpEnd) and record.kind == "NicDma":
            self.found.append(api.Violation("N1", event.node, "it has used memory", changed=event))


api.add_rule(
    api.Rule("N1", "harm", "nic-used", "The NIC is not used.", "who uses it", judge=NoDma)
)
api.register_shadow("""


@ENGINES
def test_a_rule_of_a_plugin_is_judged_and_listed(engine: tuple[str, ...], tmp_path: Path) -> None:
    path = edited(tmp_path, "\napi.register_shadow(", FORBIDDEN)
    told = run(tmp_path, *engine, "--kernel", "retries", "--out", "run", plugin=path)
    assert told.status == 1
    assert "N1 by nic0" in told.out
    assert "BUG: mmu_notifier: N1: nic-used" in told.out
    assert run(tmp_path, "check", "run", plugin=path).status == 1


def test_a_rule_of_a_plugin_is_listed(tmp_path: Path) -> None:
    path = edited(tmp_path, "\napi.register_shadow(", FORBIDDEN)
    assert "The NIC is not used." in run(tmp_path, "show", "N1", plugin=path).out
    assert "nic-used" in run(tmp_path, "list", "--rules", plugin=path).out
