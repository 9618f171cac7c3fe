"""The comparison with other checkers, without any of them: they are played by small scripts."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
GCC = """#!/bin/sh
# the last word after -o is what it makes
while [ "$1" != -o ]; do shift; done
cat > "$2" <<'END'
#!/bin/sh
if [ "$0" = ./pan ]; then
  echo "State-vector 44 byte, depth reached 16, errors: $(cat asked | grep -c VARIANT=0)"
  echo "     1434 states, stored"
else
  grep -q "VARIANT: 0" apic_reload.m && echo "1 error(s) found." || echo "No error found."
  echo "	150 states, 315 rules fired in 0s."
  grep -q "VARIANT: 0" apic_reload.m && exit 1
  exit 0
fi
END
chmod +x "$2"
"""
FAKES = {
    "spin": '#!/bin/sh\necho "$@" > asked\n',
    "gcc": GCC,
    "rumur": "#!/bin/sh\ntest -f apic_reload.m\n",
    "java": "#!/bin/sh\ncat ApicReload.cfg > asked\n"
    'grep -q "VARIANT = 0" asked && echo "Error: Invariant NoUseAfterFree is violated."\n'
    'echo "1,285 states generated, 1,564 distinct states found, 0 states left on queue."\n'
    'grep -q "VARIANT = 0" asked && exit 12\nexit 0\n',
    "frontrun": '#!/bin/sh\ncase "$3" in 0) echo "holds False explored 33 in 0.1 s";;\n'
    '*) echo "holds True explored 252 in 0.1 s";; esac\n',
}


def harness() -> ModuleType:
    """The script, as a module."""
    spec = spec_from_file_location("peers_run", ROOT / "benchmarks" / "peers" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


peers = harness()


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put programs on a PATH that has little else."""
    for name, text in scripts.items():
        path = directory / name
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.delenv("TLA2TOOLS", raising=False)
    only = {name: str(directory / name) for name in scripts}
    monkeypatch.setattr(peers.shutil, "which", only.get)


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """What the script prints of each tool."""
    peers.main(words)
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines[2:]}


def test_every_tool_is_asked_and_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, **FAKES)
    jar = tmp_path / "tla2tools.jar"
    jar.touch()
    others = [word for peer in peers.PEERS[:-1] for word in ("--only", peer.name)]
    told = rows(capsys, "--tla2tools", str(jar), "--vcpus", "3", *others)
    explored = {"Spin": "1,434 states", "rumur": "150 states", "TLC": "1,564 states"}
    for name, states in explored.items():
        assert "3 vCPUs" in told[name]
        assert told[name].count(states) == 2
        assert told[name].index("violated") < told[name].index("held")
    assert "33 executions" in told["frontrun"]
    assert "252 executions" in told["frontrun"]


def test_what_is_not_installed_is_named_with_what_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, java=FAKES["java"])
    others = [word for peer in peers.PEERS[:-1] for word in ("--only", peer.name)]
    told = rows(capsys, *others)
    assert "not installed: no spin, gcc: the Debian package spin" in told["Spin"]
    assert "not installed: no tla2tools.jar" in told["TLC"]
    assert "the PyPI package frontrun" in told["frontrun"]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("#!/bin/sh\nexec sleep 60\n", "no answer in time"),
        ("#!/bin/sh\necho it broke; exit 7\n", "frontrun failed (7): it broke"),
        ("#!/bin/sh\necho nothing to see\n", "in the output"),
    ],
)
def test_a_tool_without_an_answer_is_not_waited_for(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    install(tmp_path, monkeypatch, frontrun=script)
    row = rows(capsys, "--only", "frontrun", "--seconds", "0.5")["frontrun"]
    assert row.count(told) == 2


def test_models_are_set_to_what_is_asked(tmp_path: Path) -> None:
    setting = peers.Setting("proof", 4, 0.0, tmp_path)
    model = peers.copied(setting, "apic_reload.m", NV=4, VARIANT=2).read_text()
    assert "NV: 4; NI: 1; VARIANT: 2;" in model
    config = peers.copied(setting, "ApicReload.cfg", V="{v1}", VARIANT=2).read_text()
    assert "V = {v1} NI = 1 VARIANT = 2" in config
    with pytest.raises(peers.NoAnswerError, match="does not set COLOUR"):
        peers.copied(setting, "apic_reload.m", COLOUR=1)


def test_ours_is_a_proof_only_if_it_was_exhaustive() -> None:
    found = {"verdict": "held", "engine": "dpor", "executions": 1234, "states": 0}
    assert peers.ours_said(found | {"exhaustive": True}) == ("held", "1,234 executions")
    assert peers.ours_said(found | {"exhaustive": False})[0] == "held, not exhaustive"


def test_ours_finds_the_bug_from_a_cold_start(capsys: pytest.CaptureFixture[str]) -> None:
    answer = peers.answer(peers.PEERS[-1], "bug", peers.arguments_of(["--seconds", "60"]))
    assert answer.verdict == "violated"
    assert "schedules" in answer.explored
    assert capsys.readouterr().out == ""
