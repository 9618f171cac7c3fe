"""The first-bug table: what it counts, what it says where too few seeds found something."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from mmurace.explorer.sample.policies import CYCLES
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.scenarios.catalogue import find

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    """The benchmark, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("first_bug", ROOT / "benchmarks" / "explore.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["first_bug"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = load()


def test_the_median_counts_seeds_that_found_nothing() -> None:
    row = table.Row("E01", "pos", schedules=400, named=9, any=10, first=[3, 9, 5], explored=5)
    assert row.until_first() == (9, "")
    row.first = [3, 9]
    count, mark = row.until_first()
    assert mark == "~"
    assert 27 < count < 28, "one in forty: after 27.4 schedules half have found one"
    assert table.Row("E01", "pos", schedules=400, explored=5).until_first() == (0.0, "-")
    assert table.Row("E01", "pos", schedules=4, any=4, explored=1).until_first() == (1.0, "~")


def test_a_line_is_as_wide_as_the_head() -> None:
    row = table.Row(
        "E01", "pos", schedules=400, named=9, any=10, first=[3], explored=5, seconds=4.0
    )
    assert len(row.text()) == len(table.HEAD)
    assert row.text().split()[2:] == ["22.5", "[", "11.9,", "42.2]", "25.0", "~27", "~0.27"]


def test_the_portfolio_has_a_row_for_each_of_its_policies() -> None:
    (spec,) = table.bad_kernels([find("E08")])
    assert spec.chaos is None
    whole, *parts = table.measure(spec, "portfolio", seeds=2, schedules=10)
    assert {part.strategy.strip() for part in parts} == set(CYCLES["portfolio"])
    assert sum(part.schedules for part in parts) == whole.schedules == 20
    assert sum(part.any for part in parts) == whole.any
    assert len(table.measure(spec, "random", seeds=1, schedules=2)) == 1


def test_speed_is_measured_on_two_vcpus() -> None:
    spec = table.two_vcpus(replace(find("E01").run(), chaos=None))
    assert spec.world.parts_of(Vm)[0].vcpus == ("vcpu0", "vcpu1")
    assert table.bare(spec, 1) == table.ordered(spec, 1) >= 120


def test_exploring_needs_neither_sockets_nor_processes() -> None:
    """They would be a fifth of the time to the first violation."""
    heavy = {"zmq", "multiprocess"}
    asked = f"import sys, mmurace.explorer.sample.explore; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"
