"""Plug-ins with whatever can be wrong with them: told by file and line, and never a verdict."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.plugin_commands import (
    ENGINES,
    IMPORT,
    LOOKUP,
    NIC,
    PROCESSES,
    RACE,
    SIMULATED,
    Done,
    edited,
    line_of,
    run,
)
from tests.runs import nothing_left_behind as nothing_left_behind

# ---- wrong before anything runs ----------------------------------------------------------------

BEGIN = '"""An RDMA NIC with on-demand paging: an own translation table, kept right by'
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


# ---- what a process must not do ------------------------------------------------------------------

SWALLOWS = """
def deaf():
    while True:
        len([])


def swallows():
    while True:
        try:
            deaf()
        except BaseException:
            pass


"""
GIVEN_UP = "has not handled delivery"
"""What the broker says where the machine is too busy for the plug-in's five seconds."""
DOES = {
    "swallows all": ("swallows()", f"does not come back, and cannot be stopped|{GIVEN_UP}"),
    "stops the clock": (
        "__import__('signal').alarm(0); deaf()",
        f"does not come back within 5 s|{GIVEN_UP}",
    ),
    "sleeps": ("__import__('time').sleep(1e9)", "waits for 15 s"),
    "exits at once": ("__import__('os')._exit(0)", "calls os._exit, which is not for a plug-in"),
    "exits": ("__import__('sys').exit(0)", "SystemExit: 0"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "has a thread": ("__import__('threading').Thread(target=deaf).start()", "calls Thread.start"),
    "hears signals": ("__import__('signal').signal(14, print)", "calls signal.signal"),
    "reads": ("input()", "EOFError"),
    "ends badly": ("type('X', (), {'__del__': lambda _: 1 / 0})()", r"\(<lambda>\): ZeroDivis"),
}
SLOW = {"swallows all", "stops the clock", "sleeps"}
"""They take as long as is waited for them."""
EXPLORED = ("explore", str(RACE), "--seed", "1", "--schedules", "50")
SEARCHED = ("explore", str(RACE), "--exhaustive")
COMPARED = ("matrix", "--race", str(RACE), "--schedules", "3", "--seed", "1", "--jobs", "2")


def doing(directory: Path, what: str) -> Path:
    """The NIC that does this in its page fault."""
    path = edited(directory, LOOKUP, f"{what}\n            {LOOKUP}")
    path.write_text(path.read_text().replace(IMPORT, IMPORT + SWALLOWS))
    return path


def stopped(told: Done, status: int, words: str) -> None:
    """It ended so, named the plug-in, and said nothing else."""
    assert told.status == status
    assert "nic.py" in told.err.splitlines()[-1]
    assert re.search(words, told.err.splitlines()[-1])
    assert told.out == ""


@pytest.mark.parametrize("case", DOES)
def test_what_a_plugin_does_to_its_process_is_told_before_it_runs(
    case: str, tmp_path: Path
) -> None:
    what, words = DOES[case]
    path = edited(tmp_path, IMPORT, f"{IMPORT}{SWALLOWS}{what}\n")
    stopped(run(tmp_path, *SIMULATED, plugin=path), 2, words)
    assert not (tmp_path / "runs").exists()


@ENGINES
@pytest.mark.parametrize("case", DOES)
def test_what_a_plugin_does_to_its_process_is_no_verdict(
    case: str, engine: tuple[str, ...], tmp_path: Path
) -> None:
    what, words = DOES[case]
    stopped(run(tmp_path, *engine, plugin=doing(tmp_path, what)), 4, words)


@pytest.mark.parametrize("case", [*sorted(DOES.keys() - SLOW), "swallows all"])
def test_nor_is_it_one_of_what_is_run_again(case: str, tmp_path: Path) -> None:
    assert run(tmp_path, *SIMULATED, "--out", "run", plugin=NIC).status == 1
    what, words = DOES[case]
    path = doing(tmp_path, what)
    again = [(command, "run") for command in ("replay", "minimize", "explain")]
    for command in [again[0]] if case in SLOW else again:
        stopped(run(tmp_path, *command, plugin=path), 4, words)


@pytest.mark.parametrize("command", [EXPLORED, SEARCHED, COMPARED], ids=lambda words: words[0])
@pytest.mark.parametrize("case", ["swallows all", "exits at once", "exits", "ends badly"])
def test_nor_of_a_search(case: str, command: tuple[str, ...], tmp_path: Path) -> None:
    what, words = DOES[case]
    stopped(run(tmp_path, *command, plugin=doing(tmp_path, what)), 4, words)


@pytest.mark.processes
def test_a_node_that_is_killed_by_its_plugin_is_no_verdict(tmp_path: Path) -> None:
    path = doing(tmp_path, "__import__('signal').raise_signal(9)")
    stopped(run(tmp_path, *PROCESSES, plugin=path), 4, "nic.py: nic0 .*SIGKILL")


def test_what_a_plugin_prints_is_not_in_the_result(tmp_path: Path) -> None:
    path = doing(tmp_path, "print('x' * 100_000)")
    told = run(tmp_path, *SIMULATED, "--json", plugin=path)
    assert json.loads(told.out)["exit_code"] == told.status == 1
    assert "x" * 100_000 in told.err


def test_a_coroutine_that_does_not_close_is_no_verdict(tmp_path: Path) -> None:
    swallows = "while True:\n    try: await self.port.park('x')\n    except BaseException: pass"
    path = edited(tmp_path, LOOKUP, swallows.replace("\n", "\n            "))
    stopped(run(tmp_path, *EXPLORED, plugin=path), 4, "coroutine ignored GeneratorExit")


def test_what_takes_its_time_and_comes_back_is_left_alone(tmp_path: Path) -> None:
    path = doing(tmp_path, "sum(range(1_000_000))")
    assert run(tmp_path, *SIMULATED, plugin=path).status == 1
