"""Held against what real kernels did: tables of their calls, operation by operation."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmurace import launch
from mmurace.conform.compare import Agreement, compare
from mmurace.conform.events import played
from mmurace.conform.program import said
from mmurace.conform.table import read_table
from mmurace.nodes.kernel.variant import preset
from mmurace.protocol.errors import UserError

DATA = Path(__file__).parent / "data" / "measured"
TABLES = sorted(DATA.glob("*.tsv"))


def held(path: Path, release: str = "", **switches: object) -> Agreement:
    table = read_table(path)
    return compare(table, preset(release or table.release, table.machine, switches))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_real_kernel_did_the_same(path: Path) -> None:
    """In brackets, ``invalidate_range``, flushes, frees: all but what is known to be missing."""
    found = held(path)
    assert found.operations > 290
    assert found.same_contract / found.operations > 0.99
    assert found.same / found.operations > 0.9
    assert not found.unexplained


@pytest.mark.parametrize(
    ("table", "release", "switches"),
    [
        ("x86", "v6.6.5", {}),  # another contract
        ("x86", "v5.15", {}),  # mprotect upgrades nothing, and flushes whatever it changes
        ("x86", "", {"end_calls_ir": False}),
        ("x86", "", {"gather_calls_ir": False}),
        ("x86", "", {"fork_cpu_flush": False}),
        ("x86", "", {"pte_needs_flush": False}),
        ("x86", "", {"munmap_downgrades": False}),
        ("x86", "", {"follow_page_protnone": True}),
        ("arm64", "", {"clear_flush_calls_ir": False}),
        ("arm64", "", {"cow_range_only_end": False}),
        ("arm64", "", {"tlb_end_vma": "nothing"}),
        ("arm64", "", {"upgrade_needs_flush": False}),
        ("arm64", "", {"end_calls_ir": False}),
        ("x86-v6.12", "", {"fault_vma_lock": "none"}),
        ("x86-v6.12", "", {"madvise_vma_lock": True}),
        ("x86-v6.12", "", {"migration_batches": False}),
        ("arm64-v6.12", "v6.6.88", {}),
        ("arm64-v6.12", "", {"kvm_looks_at_vma": False}),
        ("x86-v6.18", "v6.12", {}),
        ("x86-v6.18", "", {"anon_vma_prepare": "mmap_lock"}),
    ],
)
def test_what_another_kernel_does_is_noticed(
    table: str, release: str, switches: dict[str, object]
) -> None:
    name = table if "-" in table else f"{table}-v6.1"
    assert held(DATA / f"{name}.tsv", release, **switches).unexplained


def test_an_operation_that_fails_for_want_of_a_mapping_maps_nothing(tmp_path: Path) -> None:
    row = "anon\tmunmap:0 mremap_away:0 mprotect_ro:0\t\t- | - | -"
    (file := tmp_path / "table.tsv").write_text(f"# Linux 6.1.192\n{row}\n")
    table, kernel = read_table(file), preset("v6.1")
    program = said(table.rows[0], table, kernel)
    assert [len(names) for names in program.names] == [1, 1, 1]
    assert played(program).results[program.names[1][0]] < 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("anon\tmunmap:0\t-\n", "names no release"),
        ("# Linux 6.1\nanon\tmunmap:0\n", ":2: has 2 columns"),
        ("# Linux 6.1\nanon\tmunmap\t-\n", ":2: 'munmap' is no operation"),
        ("# Linux 6.1\n\nanon\tmunmap:0 fork:0\t-\n", ":3: has 1 parts for 2 operations"),
        ("# Linux 6.1\n", "has no rows"),
    ],
)
def test_what_is_no_table_is_said(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "table.tsv").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_table(file)
    assert launch.main(["conform", "functions", str(file)]) == 2
    assert problem.split(": ")[-1] in capsys.readouterr().err


def test_a_release_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, problem in (
        (["functions", str(TABLES[0]), "--kernel", "v9.9"], "v9.9"),
        (["kvm", str(TABLES[0])], "conform functions FILE.tsv"),
        (["functions", "nowhere.tsv"], "cannot be read"),
    ):
        assert launch.main(["conform", *words]) == 2
        assert problem in capsys.readouterr().err


def test_the_command_says_what_agrees_and_what_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["conform", "functions", str(DATA / "x86-v6.1.tsv")]
    assert launch.main(words) == 0
    assert "unexplained 0 operations" in capsys.readouterr().out
    assert launch.main([*words, "--set", "gather_calls_ir=false"]) == 1
    told = capsys.readouterr().out
    assert "    measured  " in told
    assert " ir:0-1" in told
