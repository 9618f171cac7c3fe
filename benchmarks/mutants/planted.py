"""The list of mutants (``mutants.toml``), and copies of the tree with one of them planted."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.protocol.errors import UserError
from mmurace.scenarios.tables import TomlTable, convert, read_toml

ROOT: Final = Path(__file__).resolve().parents[2]
LIST: Final = Path(__file__).with_name("mutants.toml")
KERNEL_CODE: Final = ("nodes/kernel/", "nodes/secondaries/")
PREFIX: Final = "mmurace-mutants-"


class Mutant(TomlTable, frozen=True):
    """One mistake; ``old`` and ``new`` are texts without their last line's end."""

    id: str
    file: str
    subsystem: str
    mistake: str
    kernels: tuple[str, ...]
    """Names of rows of ``kernel``."""
    old: str
    new: str
    unseen: str = ""
    """Why nobody notices it; empty: somebody should."""

    def planted(self, text: str) -> str:
        """Kernel code with the mistake in it.  Raises ``UserError`` if the code has moved on."""
        old, new = self.old.rstrip("\n"), self.new.rstrip("\n")
        if (found := text.count(old)) != 1:
            raise UserError(f"{LIST.name}: {self.id}: old", f"occurs {found} times", "once")
        return text.replace(old, new)

    @property
    def digest(self) -> str:
        """Changes with the mistake, and with nothing else."""
        return hashlib.sha256("\0".join((self.file, self.old, self.new)).encode()).hexdigest()[:12]


class Stock(TomlTable, frozen=True):
    """A kernel that mutants are planted in: a release, cured of what that release itself broke."""

    name: str
    release: str
    arch: str
    set: Mapping[str, bool | int | str] = {}

    def kernel(self) -> Kernel:
        """Its switches.  Raises ``UserError``."""
        return preset(self.release, self.arch, self.set, f"{LIST.name}: {self.name}")


class Listed(TomlTable, frozen=True):
    """The whole file."""

    kernel: tuple[Stock, ...]
    suite: Mapping[str, tuple[str, ...]]
    """Subsystem -> the test files that a developer of it would run."""
    mutant: tuple[Mutant, ...]

    def stock(self, name: str) -> Stock:
        """The kernel of that name.  Raises ``UserError``."""
        for row in self.kernel:
            if row.name == name:
                return row
        raise UserError(LIST.name, f"no kernel {name!r}")

    def chosen(self, names: list[str]) -> list[Mutant]:
        """The mutants of these names, or all.  Raises ``UserError``."""
        for name in names:
            if name not in {mutant.id for mutant in self.mutant}:
                raise UserError("--only", f"no mutant {name!r}", f"one of {LIST.name}")
        return [mutant for mutant in self.mutant if not names or mutant.id in names]


def listed() -> Listed:
    """The list.  Raises ``UserError``."""
    return convert(read_toml(LIST), Listed, LIST.name)


# ---- copies --------------------------------------------------------------------------------------


class Workshop:
    """A directory for copies: gone when it is closed, or else when the next one is opened."""

    def __init__(self) -> None:
        """Remove what dead ones left, and make one."""
        place = Path(tempfile.gettempdir())
        for left in place.glob(f"{PREFIX}*"):
            _sweep(left)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def copy(self, mutant: Mutant | None = None) -> Path:
        """A copy of the tracked tree with that mistake.  Raises ``UserError``: it does not fit."""
        stock = self.path / "stock"
        if not stock.exists():
            copy_tracked(stock)
        if mutant is None:
            return stock
        to = self.path / mutant.id
        if not to.exists():  # what Python has compiled there comes along
            halves = shutil.ignore_patterns("*.pyc.*")  # being written
            shutil.copytree(stock, to, symlinks=True, ignore=halves)
            (to / mutant.file).write_text(mutant.planted((stock / mutant.file).read_text()))
        return to

    def drop(self, mutant: Mutant) -> None:
        """That copy is not needed any more."""
        shutil.rmtree(self.path / mutant.id, ignore_errors=True)

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(left: Path) -> None:
    """Remove a workshop that nobody holds the lock of."""
    try:
        directory = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left, ignore_errors=True)
    except OSError:
        pass  # its owner lives
    finally:
        os.close(directory)


def copy_tracked(to: Path) -> None:
    """What git tracks, as it is in the checkout; links stay links."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)


class Answer(msgspec.Struct, frozen=True):
    """What somebody who was shown a mutant says."""

    noticed: bool
    seconds: float
    """Of processor time: until then, or in vain."""
    rule: str = ""
    """The rule that was broken, the race that did not hold, the test that failed."""
    text: str = ""
    again: str = ""
    """What shows it again, for the same question to the stock code."""
