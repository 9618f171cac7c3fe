"""The examples of the chaos and world pages run, do something, and break no good kernel."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mmurace.broker.chaos import parse_rules
from mmurace.explorer.run.session import simulate
from mmurace.nodes.kernel.variant import preset
from mmurace.scenarios.mixed import Counts, MixedOptions
from mmurace.scenarios.runs import mixed_run, workload_run
from mmurace.scenarios.world_file import SizeTable, load_world

DOCS = Path(__file__).resolve().parents[1] / "docs"
OPERATIONS = 2500


def examples(page: str) -> list[str]:
    """The TOML blocks of a page, or of the part of it after its last heading of that name."""
    name, _, heading = page.partition("#")
    text = (
        (DOCS / name).read_text().rpartition(heading)[2] if heading else (DOCS / name).read_text()
    )
    return re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)


@cache
def recipes() -> dict[str, dict[str, Any]]:
    """The files of the cookbook, by the name of their first rule."""
    tables = [tomllib.loads(text) for text in examples("chaos.md### Cookbook")]
    return {table["rule"][0]["name"]: table for table in tables}


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_hits_and_a_good_kernel_survives_it(name: str) -> None:
    chaos = parse_rules(recipes()[name], "docs/chaos.md")
    outcome = simulate(mixed_run(preset("v6.6.5"), 5, chaos=chaos, operations_max=OPERATIONS))
    assert not outcome.violations
    assert outcome.ending.complete
    assert all(row["hits"] for row in outcome.chaos["rules"]), outcome.chaos
    assert outcome.chaos["unmatched"] == []


def test_there_is_a_recipe_for_every_fault() -> None:
    faults = {rule["fault"] for table in recipes().values() for rule in table["rule"]}
    assert faults == {
        "delay", "drop", "duplicate", "reorder", "hold", "slow_node", "pause_node", "partition",
        "kill_node",
    }  # fmt: skip


def test_the_world_of_the_page_runs(tmp_path: Path) -> None:
    (text,) = examples("worlds.md")
    (tmp_path / "world.toml").write_text(text)
    file = load_world(tmp_path / "world.toml")
    spec = workload_run("mixed", file.kernel_of(), 5, operations_max=200, file=file)
    outcome = simulate(spec)
    assert outcome.ending.complete
    assert not outcome.violations


def test_every_key_of_a_world_file_is_explained() -> None:
    text = (DOCS / "worlds.md").read_text()
    said_in_a_file = {"added": "KEY", "accesses": "mix"}
    for struct in (Counts, MixedOptions, SizeTable):
        for field in struct.__struct_fields__:
            key = said_in_a_file.get(field, field)
            assert re.search(rf"`\w+\.{key}`", text), field
