"""``fork`` into an mm that has a name already: nobody waits for ever, only a new one is a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.run.session import simulate
from mmurace.explorer.sample.explore import Options, explore
from mmurace.nodes.kernel.errno import EINVAL
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.world import World
from mmurace.protocol import records as r
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages import program as op
from mmurace.scenarios.catalogue import load_race
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.test_scenarios import records_of
from tests.worlds import page

MMS = ("mm0", "mm1", "mm2")
KERNELS = [("v6.6.5", "x86"), ("v6.6.88", "arm64"), ("v4.15", "x86")]
RING = r"""
id = "X1"
name = "n"
title = "t"
family = "cpu"
source = ["s"]
story = "s"
[world]
cpus = ["cpu0"]
[[program]]
node = "cpu0"
steps = [{ op = "fork", child = "mm0" }]
[[kernel]]
name = "v6.6.5"
release = "v6.6.5"
[kernel.expect]
verdict = "held"
[[sometimes]]
kind = "invalidated"
cache = "tlb"
"""


def ring(mapped: int, release: str, arch: str) -> RunSpec:
    """Every mm is forked into the next, all at once; the first ``mapped`` have pages."""
    programs = []
    for n, mm in enumerate(MMS):
        steps: list[op.Operation] = [op.Mmap(mm, 0, page(2), True, True), op.Touch(mm, 0, True, n)]
        steps = steps if n < mapped else []
        steps += [op.Fork(mm, MMS[(n + 1) % len(MMS)]), op.Touch(mm, 0, True, 9)]
        programs.append(Program(f"cpu{n}", f"cpu{n}", [Step(one) for one in steps]))
    cpus = tuple(program.name for program in programs)
    world = World(kernel=preset(release, arch), cpus=cpus, mms=MMS, levels=2, entries=8, frames=64)
    return RunSpec("ring", world, 0, Script(tuple(programs)))


@pytest.mark.parametrize(("release", "arch"), KERNELS)
@pytest.mark.parametrize("mapped", [0, 1, 3])
def test_forks_that_cross_do_not_wait_for_each_other(release: str, arch: str, mapped: int) -> None:
    """A child of the kernel's is new, so nobody can be waiting for its lock."""
    found = explore(ring(mapped, release, arch), Options(schedules=60))
    assert found.violated == 0, found.violations
    assert found.incomplete == 0


def test_who_finds_something_mapped_copies_nothing() -> None:
    seen, _ = records_of(ring(len(MMS), "v6.6.5", "x86"))
    forks = [one.result for one in seen if isinstance(one, r.OpEnd) and one.kind == "Fork"]
    assert len(forks) == len(MMS)
    assert -EINVAL in forks


def test_nobody_is_a_child_of_his_own(tmp_path: Path) -> None:
    path = tmp_path / "race.toml"
    path.write_text(RING, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_race(path)
    assert f"{path}: program[0].steps[0].child: is the parent itself" in str(error.value)
    alone = RunSpec("t", ring(0, "v6.6.5", "x86").world, 0,
                    Script((Program("cpu0", "cpu0", [Step(op.Fork("mm0", "mm0"))]),)))  # fmt: skip
    assert simulate(alone).status == "finished"
