"""Conditions that no run can ever meet are refused when the race is loaded, by their key."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.oracle.sometimes import conditions_from
from mmurace.protocol.errors import UserError
from mmurace.scenarios.catalogue import load_race
from mmurace.scenarios.conditions import Possible, points
from mmurace.scenarios.operations import programs_from
from mmurace.scenarios.worlds import world_from
from tests.test_cases import CASES

NODES = Path(__file__).parents[1] / "nodes"
WORLD: dict[str, Any] = {
    "cpus": ["cpu0", "cpu1"],
    "mms": ["mm0", "mm1"],
    "units": [
        {"name": "iommu0", "devices": ["device0"], "mms": ["mm0"], "iopf_cpu": "cpu1", "ats": True},
        {"name": "iommu1", "devices": ["device1"], "mms": ["mm0"], "iopf_cpu": "cpu1"},
    ],
    "vms": [
        {"name": "kvm0", "vcpus": ["vcpu0"], "mm": "mm0",
         "slots": [{"gfn": 0, "pages": 2, "hva": 0x10000}]},
    ],
}  # fmt: skip
PROGRAM: list[dict[str, Any]] = [
    {"node": "cpu0", "steps": [
        {"op": "mmap", "address": 0x10000, "pages": 4},
        {"op": "madvise_dontneed", "address": 0x10000, "pages": 1},
        {"op": "kvm_add_memslot", "vm": "kvm0", "gfn": 8, "address": 0x12000, "pages": 1},
        {"op": "munmap", "address": 0x10000, "pages": 2, "after": ["device0/0"]},
    ]},
    {"node": "cpu1", "steps": [
        {"op": "writeback", "file": "data"},
        {"op": "touch", "address": 0x13000, "mm": "mm1"},
    ]},
    {"node": "device0", "steps": [{"op": "dma", "address": 0x10000, "after": ["cpu0/0"]}]},
    {"node": "vcpu0", "steps": [{"op": "guest_touch", "gpa": 0, "after": ["cpu0/0"]}]},
]  # fmt: skip


def kernels(*names: str) -> list[tuple[str, Kernel]]:
    """Presets by name."""
    split = [(name, *name.partition("-")) for name in names or ("v6.6", "v6.2-arm64")]
    return [(name, preset(release, arch or "x86")) for name, release, _, arch in split]


def check(condition: dict[str, Any], world: dict[str, Any] | None = None, *names: str) -> None:
    """What loading a race with this condition would say."""
    of = kernels(*names)
    made = world_from(world or WORLD, of[0][1], "world")
    programs = programs_from(PROGRAM, made, "program")
    Possible(made, programs, of).check(conditions_from([condition], "file: sometimes"), "sometimes")


def cached(cache: str = "iotlb", op: str = "Munmap", **more: Any) -> dict[str, Any]:
    return {"kind": "cached_when", "cache": cache, "op": op} | more


def window(op: str = "GuestTouch", node: str = "vcpu0", of: str = "Munmap", **more: Any) -> Any:
    steps = {"from": "op_begin", "to": "op_end"}
    return {"kind": "between", "node": node, "op": op, "of": of} | steps | more


IMPOSSIBLE = [
    (cached(cache="xsl"), "cache"),
    (cached(cache="vmcs"), "cache"),
    (cached(op="Fork"), "op"),
    (cached(op="KvmAddMemslot"), "op"),
    (cached(agent="device0"), "agent"),
    (cached(cache="atc", agent="device1"), "agent"),
    (cached(address=0x40000), "address"),
    (cached(cache="spte", address=0x13000), "address"),
    (cached(cache="spte", op="Writeback", at="began"), "at"),
    (cached(cache="gtlb", op="GuestTouch", at="began"), "at"),
    (cached(op="Munmap", at="began", address=0x13000), "at"),
    (window(of="Fork"), "of"),
    (window(op="GuestApic"), "op"),
    (window(op="GuestTouch", node="cpu0"), "node"),
    (window(**{"from": "op_end"}), "from"),
    (window(to="op_begin"), "to"),
    (window(to="frame_copied"), "to"),
    (window(of="KvmAddMemslot", to="pte_change"), "to"),
    (window(overlapping=True), "overlapping"),
    (window(op="Touch", node="cpu1", overlapping=True), "overlapping"),
    (window(op="Mmap", node="cpu0", of="GuestTouch"), ""),
    (window(op="Dma", node="device0", of="Munmap"), ""),
    ({"kind": "covered", "point": "nested_gathering"}, "point"),
    ({"kind": "covered", "point": "table_moved"}, "point"),
    ({"kind": "covered", "point": "upper_entry_kept"}, "point"),
    ({"kind": "covered", "point": "pid_reused"}, "point"),
    ({"kind": "invalidated", "cache": "xsl"}, "cache"),
    ({"kind": "invalidated", "cache": "tlb", "at_least": 99}, "at_least"),
]
"""Conditions, each with the key that is to blame; empty: it as a whole."""


@pytest.mark.parametrize(("condition", "key"), IMPOSSIBLE)
def test_one_that_can_never_be_met_is_refused_by_its_key(
    condition: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError) as error:
        check(condition)
    assert error.value.where == "sometimes[0]" + (f".{key}" if key else "")
    assert "can never be met" in str(error.value)
    assert error.value.expected


@pytest.mark.parametrize(
    "condition",
    [
        cached(),
        cached(agent="iommu1", address=0x10000),
        cached(cache="atc", agent="device0"),
        cached(cache="spte", address=0x12000, op="MadviseDontneed"),
        cached(cache="spte", op="Writeback"),
        cached(cache="gtlb", op="Munmap", at="began", address=0x11000),
        window(),
        window(**{"from": "range_start", "to": "range_end"}),
        window(**{"from": "flush", "to": "frame_freed"}),
        window(op="Munmap", node="cpu0", of="GuestTouch", to="frame_copied"),
        window(op="Dma", node="device0", of="MadviseDontneed", overlapping=True),
        {"kind": "covered", "point": "nested_gather"},
        {"kind": "invalidated", "cache": "tlb", "at_least": 3},
        {"kind": "frames_reused"},
    ],
)
def test_one_that_can_be_met_is_not(condition: dict[str, Any]) -> None:
    check(condition)


def test_it_must_be_possible_on_every_kernel() -> None:
    """Before v5.8 and from v6.5 KVM has no invalidate_range; without an IOMMU nobody has."""
    world = WORLD | {"units": []}
    flush = window(of="MadviseDontneed", **{"from": "flush"})
    programs = [
        p | {"steps": [{k: v for k, v in s.items() if k != "after"} for s in p["steps"]]}
        for p in PROGRAM
        if p["node"] != "device0"
    ]
    made = world_from(world, preset("v6.2"), "world")
    for names, fine in ((["v6.2"], True), (["v6.2", "v6.6"], False)):
        possible = Possible(made, programs_from(programs, made, "program"), kernels(*names))
        conditions = conditions_from([flush], "file: sometimes")
        if fine:
            possible.check(conditions, "sometimes")
        else:
            with pytest.raises(UserError, match=r"\.from: .*on v6\.6 nobody"):
                possible.check(conditions, "sometimes")


def test_every_point_that_nodes_emit_is_known() -> None:
    emitted = set()
    for path in NODES.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Coverage":
                for part in ast.walk(call.args[0]):
                    if isinstance(part, ast.Constant):
                        emitted.add(part.value)
    assert emitted <= set(points())
    assert set(points()) - emitted == {
        "pasid_reused",
        "pid_reused",
    }


# ---- the case ------------------------------------------------------------------------------------


def test_with_what_its_readme_says_it_is_refused(tmp_path: Path) -> None:
    """A write-back has no addresses when it begins."""
    text = (CASES / "impossible-condition.toml").read_text(encoding="utf-8")
    head = text[: text.index("[[sometimes]]")]
    path = tmp_path / "race.toml"
    path.write_text(
        head + '[[sometimes]]\nkind = "cached_when"\ncache = "spte"\nop = "Writeback"\n'
        'at = "began"\n',
        encoding="utf-8",
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        load_race(path)
    assert f"{path}: sometimes[0].at: this can never be met" in str(error.value)
