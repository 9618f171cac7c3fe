"""Plug-ins: a user's Python files that declare secondaries, switches, operations and rules, or put
a function in the place of a kernel function.

A plug-in is imported by every process of a run, before anything of the run is read.  What goes
wrong in it is its author's fault, and is told by file and line: ``UserError`` while it is imported,
``PluginError`` while it runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, Final

import msgspec

from mmurace.nodes.kernel import variant
from mmurace.protocol.errors import EmulatorError, UserError
from mmurace.protocol.limits import PLUGIN_IMPORT_SECONDS

GROUP: Final = "mmurace.plugins"
"""Entry points of installed packages by which ``--plugin NAME`` finds a module."""
_PREFIX: Final = "mmurace_plugin_"


class Plugin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plug-in that was loaded."""

    name: str
    """The stem of its file, or the name of its entry point."""
    path: str
    sha256: str


_LOADED: Final[dict[str, Plugin]] = {}


def loaded() -> tuple[Plugin, ...]:
    """Those that this process has imported, in that order."""
    return tuple(_LOADED.values())


def load(named: Iterable[str]) -> tuple[Plugin, ...]:
    """Import plug-ins, each a ``FILE.py`` or the name of an entry point.  Raises ``UserError``."""
    return tuple(map(_load, named))


def _load(given: str) -> Plugin:
    path = _path_of(given)
    name = path.stem if given.endswith(".py") else given
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(given, f"cannot be read: {error.strerror}", "a Python file") from None
    plugin = Plugin(name, str(path.resolve()), hashlib.sha256(text).hexdigest())
    known = _LOADED.get(name)
    if known is not None and known.sha256 != plugin.sha256:
        raise UserError(given, f"another plug-in {name!r} is loaded", "different names")
    if known is None:
        _import(_PREFIX + name, path)
        _LOADED[name] = plugin
    return plugin


def _path_of(given: str) -> Path:
    if given.endswith(".py"):
        return Path(given)
    from importlib.metadata import entry_points  # slow, and needed by few

    points = entry_points(group=GROUP)
    for point in points.select(name=given):
        spec = importlib.util.find_spec(point.module)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    known = ", ".join(sorted(points.names)) or "none is installed"
    raise UserError("--plugin", f"no plug-in {given!r}", f"a file FILE.py, or one of: {known}")


def _import(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with time_limit(PLUGIN_IMPORT_SECONDS, "its import"):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(*_where(error, path)) from None


def _where(error: BaseException, path: Path) -> tuple[str, str]:
    """(file and line, what went wrong) of an error while a plug-in was imported."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}", f"is not Python: {error.msg}"
    line = _line_in(error.__traceback__, path)
    what = str(error) if isinstance(error, (EmulatorError, UserError)) else _said(error)
    return (f"{path}:{line}" if line else str(path)), what


def _line_in(found: TracebackType | None, path: Path) -> int:
    lines = [f.lineno for f in traceback.extract_tb(found) if Path(f.filename) == path]
    return lines[-1] or 0 if lines else 0


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def others(wanted: Iterable[Plugin]) -> list[str]:
    """Names of plug-ins that are loaded, and are not the same text as the ones wanted."""
    texts = {plugin.name: plugin.sha256 for plugin in _LOADED.values()}
    return [p.name for p in wanted if texts.get(p.name, p.sha256) != p.sha256]


class Needed:
    """What a process of a run needs: unpickling it imports the plug-ins, before what follows."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = tuple(paths)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _needed, (self.paths,)


def _needed(paths: tuple[str, ...]) -> Needed:
    load(paths)
    return Needed(paths)


def start(_: Needed, target: Callable[..., None], given: tuple[Any, ...]) -> None:
    """Run ``target`` in a new process, which has by now imported what it needs."""
    target(*given)


# ---- while it runs -----------------------------------------------------------------------------


def blame(error: BaseException) -> str:
    """Which plug-in an error came from: ``nic.py:40 (access): KeyError: 'x'``; empty: none."""
    files = {plugin.path: plugin.name for plugin in _LOADED.values()}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = str(Path(frame.filename).resolve())
        if path in files:
            name = Path(path).name
            return f"plug-in {name}:{frame.lineno} ({frame.name}): {_said(error)}"
    return ""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise ``TimeoutError`` in the main thread after so long; elsewhere nothing is limited."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- functions in the place of others ----------------------------------------------------------

_PATCHES: Final[dict[str, str]] = {}
"""Names of patches that kernels can have -> the functions that each replaces, for people."""


def patches() -> dict[str, str]:
    """Patches that plug-ins have declared."""
    return dict(_PATCHES)


def replaces(file: str, function: str, patch: str = "") -> Callable[[Any], Any]:
    """Put the decorated function in the place of a kernel function, for kernels with ``patch``.

    ``file`` and ``function`` are the kernel's names: ``@replaces("mm/mprotect.c",
    "change_pte_range")``.  ``patch`` is what a kernel names in ``patches``; the plug-in's own name
    if it is left out.  The function gets the same arguments; the stock one is its ``.stock``.
    Raises ``EmulatorError`` if the emulator has no such function.
    """
    module = _module_of(file)
    stock = getattr(module, function, None)
    if not inspect.iscoroutinefunction(stock) or stock.__module__ != module.__name__:
        raise EmulatorError(f"no function {function!r} of {file} is modelled in {module.__name__}")

    def put(new: Any) -> Any:
        name = patch or new.__module__.removeprefix(_PREFIX)
        _PATCHES[name] = ", ".join(filter(None, (_PATCHES.get(name), f"{function} ({file})")))
        new.stock = stock
        _put_everywhere(stock, _chooser(stock, new, name))
        return new

    return put


def _chooser(stock: Any, new: Any, patch: str) -> Any:
    """The function that runs the one or the other, as the kernel at hand says."""

    def chosen(cpu: Any, *given: Any, **named: Any) -> Any:
        return (new if patch in cpu.world.kernel.patches else stock)(cpu, *given, **named)

    chosen.__name__, chosen.__doc__, chosen.__module__ = (
        stock.__name__, stock.__doc__, stock.__module__,
    )  # fmt: skip
    return chosen


def _put_everywhere(stock: Any, instead: Any) -> None:
    """Whoever has imported the function by name gets the other one too."""
    root = variant.__name__.partition("nodes.")[0] + "nodes"
    for name, module in list(sys.modules.items()):
        if name.startswith(root):
            for key, value in list(vars(module).items()):
                if value is stock:
                    setattr(module, key, instead)


def _module_of(file: str) -> ModuleType:
    """The module that stands for a file of the kernel: its docstring begins with the path."""
    root = variant.__name__.removesuffix(".variant")
    known: dict[str, ModuleType] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(root.removesuffix(".kernel")):
            for path in _paths_of(module):
                known.setdefault(path, module)
    if file not in known:
        raise EmulatorError(f"no file {file!r} is modelled; there are {', '.join(sorted(known))}")
    return known[file]


def _paths_of(module: ModuleType) -> list[str]:
    """Paths in the kernel's tree that the first line of a module's docstring names."""
    first = (module.__doc__ or "").partition(":")[0].replace(",", " ").replace(" and ", " ")
    return [word for word in first.split() if word.endswith((".c", ".h"))]
