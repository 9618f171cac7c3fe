"""One run, one trace: processes and simulator agree byte for byte, whatever the hash seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from mmurace.broker.chaos import load_rules
from mmurace.broker.chaos_config import CONFIGS
from mmurace.broker.follow import compare_runs
from mmurace.explorer.run.session import check, replay, run_on_processes, simulate
from mmurace.nodes.kernel.variant import preset
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.mixed import Mixed
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.strace import StraceLog

LOG = Path(__file__).parent / "data" / "numpy.strace"


def mixed(seed: int, operations: int = 120) -> RunSpec:
    """A short mixed run under lossy chaos, evictions included."""
    workload = Mixed()
    world = workload.world(preset("v6.6.5"))
    chaos = load_rules(CONFIGS / "lossy.toml")
    return RunSpec("mixed", world, seed, workload, chaos, operations_max=operations)


def log(seed: int) -> RunSpec:
    """The beginning of a real program's log under jitter."""
    workload = StraceLog(LOG)
    world = workload.world(preset("v6.6.5", "arm64"))
    chaos = load_rules(CONFIGS / "jitter.toml")
    return RunSpec("numpy", world, seed, workload, chaos, operations_max=150)


RUNS = {
    "E01": lambda: find("E01").run("v5.7", 3),
    "E08": lambda: find("E08").run("v6.2-end-only", 3),
    "mixed": lambda: mixed(5),
    "log": lambda: log(7),
}


@pytest.mark.processes
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_processes_replays_everywhere(name: str, tmp_path: Path) -> None:
    first, second, third = (tmp_path / part for part in ("run", "simulator", "processes"))
    for directory in (first, second, third):
        directory.mkdir()
    spec = RUNS[name]().save(first)
    original = run_on_processes(spec, first)
    assert original.status == "finished", original.detail
    for on, directory in (("simulator", second), ("processes", third)):
        again = replay(first, on, directory)  # type: ignore[arg-type]  # the literals above
        assert again.status == "finished", again.detail
        assert compare_runs(first, directory) is None
        assert again.verdict.outcome == original.verdict.outcome
        assert [v.identity() for v in again.violations] == [
            v.identity() for v in original.violations
        ]


def test_streaming_and_offline_oracle_agree(tmp_path: Path) -> None:
    spec = find("E08").run("v6.2-end-only", 2).save(tmp_path)
    live = simulate(spec, tmp_path)
    saved = check(tmp_path)
    assert msgspec.to_builtins(saved.verdict) == msgspec.to_builtins(live.verdict)


def test_the_hash_seed_changes_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.test_replay import mixed;"
        "from explorer.run.session import simulate; out = Path(sys.argv[1]);"
        "simulate(mixed(5).save(out), out)"
    )
    runs = []
    for hash_seed in ("0", "1", "31337"):
        out = tmp_path / hash_seed
        out.mkdir()
        subprocess.run(
            [sys.executable, "-c", program, str(out)],
            check=True,
            timeout=120,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            cwd=Path(__file__).parents[1],
        )
        runs.append(out)
    assert compare_runs(runs[0], runs[1]) is None
    assert compare_runs(runs[0], runs[2]) is None
