"""An exploration's oracle reads in stretches, and its worlds are freed at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping

import pytest

from mmurace.broker.schedules import RandomWalk
from mmurace.explorer.run import batched_oracle as stretches
from mmurace.explorer.run.garbage_collector import collector_at_rest
from mmurace.explorer.sample import explore
from mmurace.explorer.sample.explore import run_schedule
from mmurace.nodes.build import build_all
from mmurace.nodes.driver import Driver
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.world import World
from mmurace.scenarios.runs import mixed_run
from mmurace.scenarios.spec import RunSpec
from tests.test_kill import kill, spec_of

OPERATIONS = 120


@pytest.mark.parametrize("release", ["v6.2", "v6.6.5"])
def test_what_the_oracle_says_does_not_depend_on_the_stretch(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent: dict[str, object] = {"gather_calls_ir": False, "end_calls_ir": False}
    switches = silent if release == "v6.2" else {}
    spec = mixed_run(preset(release, "x86", switches), 3, operations_max=OPERATIONS)
    (said,) = said_by_stretch(spec, monkeypatch)
    assert ("Violation" in said) == (release == "v6.2")


@pytest.mark.parametrize("victim", ["device0", "kvm0"])
def test_a_death_is_told_in_its_place(victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        (said,) = said_by_stretch(spec_of(seed, kill(victim, 400)), monkeypatch)
        assert "Violation" not in said, "what died holds nothing"


def said_by_stretch(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """All that the oracle says of one run, read in stretches of different lengths."""
    said = set()
    for length in (1, 7, 1024):
        monkeypatch.setattr(stretches, "STRETCH", length)
        trial = run_schedule(spec, RandomWalk(spec.seed), signed=length == 7)
        said.add(f"{trial.deliveries} {trial.oracle.violations} {trial.oracle.statistics}")
    return said


def test_a_world_is_freed_without_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[weakref.ref[object]] = []

    def watched(world: World, seed: int) -> Mapping[str, Driver]:
        drivers = build_all(world, seed)
        nodes.extend(weakref.ref(part) for d in drivers.values() for part in (d.node, d.port))
        return drivers

    monkeypatch.setattr(explore, "build_all", watched)
    spec = mixed_run(preset("v6.6.5", "x86"), 3, operations_max=OPERATIONS)
    gc.collect()
    with collector_at_rest():
        assert run_schedule(spec, RandomWalk(3)).complete
        assert nodes
        assert not [node for node in nodes if node() is not None]
