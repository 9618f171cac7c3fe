"""What editors and shells know: schemas of files, completion, the manual page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmurace import launch
from mmurace.broker.chaos_config import presets
from mmurace.report.arguments import all_commands
from mmurace.report.commands.shell import SHELLS
from mmurace.scenarios.operations import operations
from mmurace.scenarios.schema import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
TAPLO = shutil.which("taplo", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
RACES = sorted((ROOT / "scenarios").glob("*.toml"))
CHAOS = sorted((ROOT / "broker" / "configs").glob("*.toml"))
GOOD = (ROOT / "scenarios" / "e01-kvm-apic-reload-vs-range.toml").read_text()
WORLD = """\
schema = 1
[kernel]
release = "v6.2"
set = { gather_calls_ir = false }
[nodes]
cpus = 3
[mixed]
mix = { touch = 40 }
"""


def test_the_schemas_on_file_are_up_to_date() -> None:
    command = [sys.executable, "docs/schemas.py", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("files", "name"), [(RACES, "race"), (CHAOS, "chaos")])
def test_every_file_leads_to_its_schema(files: list[Path], name: str) -> None:
    assert len(files) > len(presets()) // 2
    for file in files:
        found = re.match(r"#:schema (\S+)\n", file.read_text())
        assert found is not None, file
        assert (file.parent / found[1]).resolve() == ROOT / "docs/schema" / f"{name}.schema.json"


def lint(*files: Path) -> subprocess.CompletedProcess[str]:
    """What a TOML language server says of files."""
    return subprocess.run(
        [str(TAPLO), "lint", "--colors", "never", *files], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


needs_taplo = pytest.mark.skipif(TAPLO is None, reason="taplo is not installed")


@needs_taplo
def test_a_language_server_finds_nothing_wrong_with_what_is_right(tmp_path: Path) -> None:
    own = tmp_path / "world.toml"
    own.write_text(f"#:schema {ROOT}/docs/schema/world.schema.json\n{WORLD}")
    done = lint(*RACES, *CHAOS, own)
    assert done.returncode == 0, done.stderr


@needs_taplo
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('op = "mmap"', 'op = "mmapp"'), ("pages = 1 }", "pages = 0 }"), ("pages = 1", "sides = 1"),
        ("apic_reload", "apic_relaod"), ('"zap_spins"', '"zap"'), ("frames = 32", "frames = 0"),
        ('verdict = "held"', 'verdict = "hold"'), ('kind = "between"', 'kind = "betwen"'),
        ('family = "shadow"', ""), ('fault = "hold"', 'fault = "hodl"'), ("vcpus", "cpus"),
        ('at = "began"', 'at = "begun"'),
    ],
)  # fmt: skip
def test_a_language_server_marks_what_the_program_refuses(
    old: str, new: str, tmp_path: Path
) -> None:
    text = GOOD.replace("../docs", f"{ROOT}/docs")
    assert old in text
    file = tmp_path / "race.toml"
    file.write_text(text)
    assert lint(file).returncode == 0
    file.write_text(text.replace(old, new, 1))
    assert lint(file).returncode != 0
    assert launch.main(["show", str(file)]) == 2


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["schema", name]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert launch.main(["schema", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plain
    assert plain["additionalProperties"] is False


def test_a_race_can_have_every_operation() -> None:
    steps = SCHEMAS["race"]()["$defs"]["Program"]["properties"]["steps"]["items"]["oneOf"]
    assert {step["$ref"].rpartition("op_")[2] for step in steps} == set(operations())


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert launch.main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in launch.COMMANDS)


def test_another_shell_and_another_file_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["completion", "cmd"]) == launch.main(["schema", "run"]) == 2
    err = capsys.readouterr().err
    assert "no shell 'cmd' (expected one of bash" in err
    assert "no file is called 'run' (expected one of race" in err


def test_the_manual_has_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["completion", "man"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(".TH MMURACE 1 ")
    plain = page.replace("\\-", "-")
    for name, parser in all_commands().made.items():
        assert f"\n.SS {name}\n" in plain
        for action in parser._get_optional_actions():
            if "--help" not in action.option_strings:
                assert all(f"\\fB{option}\\fR" in plain for option in action.option_strings)
    assert not re.search(r"^['.](?!TH|SH|SS|TP|B|RI|I|BR)", page, re.MULTILINE)
