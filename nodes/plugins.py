"""Plug-ins: a user's Python files that declare secondaries, switches, operations and rules, or put
a function in the place of a kernel function.

A plug-in is imported by every process of a run, before anything of the run is read.  What goes
wrong in it is its author's fault, and is told by file and line: ``UserError`` while it is imported,
``PluginError`` while it runs.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

import msgspec

from mmurace.nodes.kernel import variant
from mmurace.nodes.plugin_guard import guard
from mmurace.nodes.plugin_watchdog import PluginLoops, watch, watched
from mmurace.protocol.errors import EmulatorError, PluginError, UserError
from mmurace.protocol.messages.base import Message, kinds

GROUP: Final = "mmurace.plugins"
"""Entry points of installed packages by which ``--plugin NAME`` finds a module."""
_PREFIX: Final = "mmurace_plugin_"
_BLAMED: Final = "plug-in "
"""How a sentence about a plug-in begins; by that one from another process is known."""


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
    file = path.resolve()
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # What it prints is for people: on stdout there may be one JSON object, and nothing else.
    vars(module)["print"] = functools.partial(print, file=sys.stderr)
    sys.modules[name] = module
    before = set(kinds())
    watch(str(file))
    guard()
    sys.unraisablehook = _note
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if is_interrupt(error):
            raise
        raise UserError(*_where(error, path)) from None
    _check_messages(module, path, before)
    if _NOTED:
        raise UserError(str(path), _NOTED[0])


def _check_messages(module: ModuleType, path: Path, before: set[str]) -> None:
    """Messages have names of their own: a name is all that the wire has.  Raises ``UserError``."""
    for name, value in vars(module).items():
        own = isinstance(value, type) and value.__module__ == module.__name__
        if own and issubclass(value, Message) and name in before:
            place = f"{path}:{inspect.getsourcelines(value)[1]}"
            raise UserError(place, f"there is a message {name!r} already", "another name")


def _where(error: BaseException, path: Path) -> tuple[str, str]:
    """(file and line, what went wrong) of an error while a plug-in was imported."""
    if isinstance(error, SyntaxError) and error.filename == str(path.resolve()):
        return f"{path}:{error.lineno}", f"is not Python: {error.msg}"
    line = _line_in(error.__traceback__, path)
    return (f"{path}:{line}" if line else str(path)), _said(error)


def _line_in(found: TracebackType | None, path: Path) -> int:
    file = str(path.resolve())
    lines = [f.lineno for f in traceback.extract_tb(found) if f.filename == file]
    return lines[-1] or 0 if lines else 0


def _said(error: BaseException) -> str:
    if isinstance(error, (EmulatorError, PluginLoops, UserError)):
        return str(error)
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
    return _blame(error, error.__traceback__)


def _blame(error: BaseException, found: TracebackType | None) -> str:
    for frame in reversed(traceback.extract_tb(found)):
        if str(Path(frame.filename).resolve()) in watched():
            name = Path(frame.filename).name
            return f"{_BLAMED}{name}:{frame.lineno} ({frame.name}): {_said(error)}"
    return ""


def is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C: one that a plug-in raises is an error like any other."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return not last or last[0].filename not in watched()


_NOTED: Final[list[str]] = []
"""What went wrong where nothing can be raised: in a destructor, or a coroutine that is closed."""


def _note(found: sys.UnraisableHookArgs) -> None:
    """In the place of a traceback on stderr, which nobody could make anything of."""
    error = found.exc_value
    if error is not None and (said := _blame(error, found.exc_traceback)):
        _NOTED.append(said)
        return
    waits = found.object
    while inspect.iscoroutine(waits):  # one that does not close takes along who waits for it
        code = waits.cr_code
        if code.co_filename in watched():
            name = Path(code.co_filename).name
            _NOTED.append(f"{_BLAMED}{name}:{code.co_firstlineno} ({code.co_name}): {error}")
            return
        waits = waits.cr_await
    if inspect.iscoroutine(found.object):  # of ours none catches what closes it
        _NOTED.append(f"{_BLAMED}{', '.join(Path(file).name for file in watched())}: {error}")
        return
    sys.__unraisablehook__(found)


def raise_noted() -> None:
    """Raise ``PluginError`` if something went wrong meanwhile where nothing can be raised."""
    if _NOTED:
        raise PluginError(_NOTED[0])


def said_of(error: BaseException) -> str:
    """The same, or what a ``PluginError`` says."""
    return str(error) if isinstance(error, PluginError) else blame(error)


def ran(error: BaseException) -> bool:
    """Whether something ran already when a plug-in went wrong."""
    return isinstance(error, PluginError)


@contextmanager
def at_fault() -> Iterator[None]:
    """While something runs: what goes wrong in a plug-in's code becomes a ``PluginError``.

    Whatever it raises: ``sys.exit`` in a callback is no end of the run.
    """
    try:
        yield
        raise_noted()
    except PluginError:
        raise
    except BaseException as error:
        if not is_interrupt(error) and (blamed := blame(error)):
            raise PluginError(blamed) from error
        raise


def leave(status: int) -> None:
    """With plug-ins, end this process now: what they leave behind (an ``atexit``, a destructor,
    a coroutine that will not close) has nothing to say any more, and could wait for ever.
    """
    if _LOADED:
        atexit._run_exitfuncs()
        os._exit(status)


def named_in(text: str) -> str:
    """What a process said of a plug-in before it broke; empty: nothing."""
    lines = (line.partition(_BLAMED)[1:] for line in text.splitlines())
    return next(("".join(line).partition("; ")[0] for line in lines if line[0]), "")


def author_of(thing: object) -> str:
    """The plug-in that a class, or an object's class, comes from: ``nic.py``; empty: none."""
    kind = thing if isinstance(thing, type) else type(thing)
    modules = {_PREFIX + name: Path(plugin.path).name for name, plugin in _LOADED.items()}
    return next(
        (modules[base.__module__] for base in kind.__mro__ if base.__module__ in modules), ""
    )


# ---- functions in the place of others ----------------------------------------------------------

_PATCHES: Final[dict[str, dict[str, str]]] = {}
"""Patches that kernels can have -> the functions that each replaces -> their plug-ins."""


def patches() -> dict[str, str]:
    """Patches that plug-ins have declared: name -> the functions that it replaces, for people."""
    return {patch: ", ".join(functions) for patch, functions in _PATCHES.items()}


def author_of_function(function: Any) -> str:
    """The plug-in that a function is from; empty: none."""
    module = getattr(function, "__module__", "")
    return next((f"{name}.py" for name in _LOADED if module == _PREFIX + name), "")


def check_patch(patch: str) -> None:
    """Raise ``UserError`` for a patch that no plug-in has declared; empty is none."""
    if patch and patch not in _PATCHES:
        known = ", ".join(_PATCHES) or "--plugin with a file that declares one"
        raise UserError("--patch", f"no patch {patch!r}", known)


_REACHED: Final[set[str]] = set()


def reached() -> frozenset[str]:
    """Patches of which a function ran, as stock or replaced, since ``forget_reached``."""
    return frozenset(_REACHED)


def forget_reached() -> None:
    """Nothing ran yet."""
    _REACHED.clear()


def author_of_patch(patch: str) -> str:
    """The plug-in that declares a patch: ``x.py``; empty: none."""
    return next(iter(_PATCHES.get(patch, {}).values()), "")


def replaces(file: str, function: str, patch: str = "") -> Callable[[Any], Any]:
    """Put the decorated function in the place of a kernel function, for kernels with ``patch``.

    ``file`` and ``function`` are the kernel's names: ``@replaces("mm/mprotect.c",
    "change_pte_range")``.  ``patch`` is what a kernel names in ``patches``; the plug-in's own name
    if it is left out.  The function gets the same arguments; the stock one is its ``.stock``.
    Raises ``EmulatorError`` if the emulator has no such function, or it takes something else.
    """
    module = _module_of(file, function)
    stock = getattr(module, function, None)
    if not inspect.iscoroutinefunction(stock) or stock.__module__ != module.__name__:
        known = ", ".join(_functions_of(module))
        raise EmulatorError(f"no function {function!r} of {file} is modelled; there are {known}")

    def put(new: Any) -> Any:
        name = patch or new.__module__.removeprefix(_PREFIX)
        place = f"{function} ({file})"
        if place in _PATCHES.get(name, ()):
            raise EmulatorError(f"the patch {name!r} replaces {place} twice")
        _check_signature(new, stock, place)
        author = new.__module__.removeprefix(_PREFIX) + ".py"
        _PATCHES.setdefault(name, {})[place] = author
        new.stock = stock
        _put_everywhere(stock, _chooser(stock, new, name))
        return new

    return put


def _functions_of(module: ModuleType) -> list[str]:
    """Kernel functions that a module has."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.iscoroutinefunction(value) and value.__module__ == module.__name__
        if not name.startswith("_")
    ]


def _check_signature(new: Any, stock: Any, place: str) -> None:
    """Whether it can be called in the place of the stock one.  Raises ``EmulatorError``."""
    if not inspect.iscoroutinefunction(new):
        raise EmulatorError(f"what replaces {place} has to be an async function")
    wanted = inspect.signature(stock)
    given = [None] * len(wanted.parameters)
    try:
        inspect.signature(new).bind(*given)
    except TypeError as error:
        names = ", ".join(wanted.parameters)
        raise EmulatorError(f"{place} takes ({names}): {error}") from None


def _chooser(stock: Any, new: Any, patch: str) -> Any:
    """The function that runs the one or the other, as the kernel at hand says."""

    @functools.wraps(stock)
    async def chosen(cpu: Any, *given: Any, **named: Any) -> Any:
        _REACHED.add(patch)
        if patch in cpu.world.kernel.patches:
            return await new(cpu, *given, **named)
        return await stock(cpu, *given, **named)

    return chosen


def _put_everywhere(stock: Any, instead: Any) -> None:
    """Whoever has imported the function by name gets the other one too."""
    root = variant.__name__.partition("nodes.")[0] + "nodes"
    for name, module in list(sys.modules.items()):
        if name.startswith(root):
            for key, value in list(vars(module).items()):
                if value is stock:
                    setattr(module, key, instead)


def _module_of(file: str, function: str) -> ModuleType:
    """The module that stands for a file of the kernel: its docstring begins with the path.

    Of several that share a file, the one that has the function.
    """
    root = variant.__name__.removesuffix(".variant")
    known: dict[str, list[ModuleType]] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(root.removesuffix(".kernel")):
            for path in _paths_of(module):
                known.setdefault(path, []).append(module)
    if file not in known:
        raise EmulatorError(f"no file {file!r} is modelled; there are {', '.join(sorted(known))}")
    own = (m for m in known[file] if _defines(m, function))
    return next(own, known[file][0])


def _defines(module: ModuleType, function: str) -> bool:
    return getattr(vars(module).get(function), "__module__", "") == module.__name__


def _paths_of(module: ModuleType) -> list[str]:
    """Paths in the kernel's tree that the first line of a module's docstring names."""
    first = (module.__doc__ or "").partition(":")[0].replace(",", " ").replace(" and ", " ")
    return [word for word in first.split() if word.endswith((".c", ".h"))]
