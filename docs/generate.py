"""Write the pages that are made from code: ``docs/protocol.md`` and ``docs/reference.md``.

``python docs/generate.py`` writes them, ``--check`` only says whether they are up to date (exit
status 1 if not).
"""

from __future__ import annotations

import difflib
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ForwardRef, get_args, get_origin, get_type_hints

import msgspec
import reference
from structs import field_notes, plain

from mmurace.nodes import build
from mmurace.protocol import messages, records
from mmurace.protocol.envelope import REPLY_MARK
from mmurace.protocol.messages import base

assert build  # with it everything that declares messages is imported
ROOT = Path(__file__).resolve().parents[1]

HEAD = """\
<!-- Made by docs/generate.py from protocol/messages, nodes/secondaries/*/messages.py and
protocol/records.py.  Do not edit. -->

# Messages and records

Every access to shared state is a message, a request that gets exactly one reply.  A reply
travels as the kind of its request with `{mark}` (`PtlLock{mark}`), which is also how chaos rules
name it.  *Object* is what the message declares it accesses: a label and the fields that complete
it, where a shorter key covers every longer one that it begins; *the receiver* means all of it.
Fields are in the order in which they travel.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD.format(mark=REPLY_MARK), "## Contents\n", contents()]
    for module in modules():
        parts.append(f"## {module_title(module)}\n")
        parts.append(f"{paragraphs(module)}\n")
        parts += [section(cls) for cls in classes(module, base.Message)]
    parts.append("## Records\n")
    parts.append(f"{paragraphs(records)}\n")
    parts += [section(cls) for cls in classes(records, records.Record)]
    return "\n".join(parts)


def modules() -> list[types.ModuleType]:
    """The modules of messages: the shared one, the core's, the secondaries'."""
    found = [m for _, m in sorted(vars(messages).items()) if inspect.ismodule(m) and m is not base]
    declared = {module.__name__: module for module in found}
    own = {sys.modules[cls.__module__].__name__ for cls in base.kinds().values()} - set(declared)
    own.discard(base.__name__)
    return [base, *found, *(sys.modules[name] for name in sorted(own))]


def module_title(module: types.ModuleType) -> str:
    """``memory`` for ``protocol.messages.memory``, ``kvm`` for a secondary's ``kvm.messages``."""
    name = module.__name__.removesuffix(".messages").rpartition(".")[2]
    return "Shared by all" if module is base else f"Messages: {name}"


def contents() -> str:
    """Links to every section."""
    titles = [module_title(module) for module in modules()] + ["Records"]
    return "".join(f"- [{title}](#{anchor(title)})\n" for title in titles)


def anchor(title: str) -> str:
    """The fragment that Markdown viewers give a heading."""
    return title.lower().replace(":", "").replace(" ", "-")


def classes(module: types.ModuleType, root: type) -> list[type[msgspec.Struct]]:
    """The structs that the module defines, in its order; bare bases are left out."""
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and issubclass(value, msgspec.Struct)
        and value not in (root, base.Request)
        and not (issubclass(value, root) and value.__subclasses__())
    ]


def section(cls: type[msgspec.Struct]) -> str:
    """One message or record."""
    lines = [f"### {cls.__name__}\n", f"{paragraphs(cls)}\n"]
    facts = list(message_facts(cls))
    if facts:
        lines.append("; ".join(facts) + ".\n")
    fields = msgspec.structs.fields(cls)
    if fields:
        lines += ["| field | type | |", "|---|---|---|", *rows(cls), ""]
    return "\n".join(lines)


def message_facts(cls: type) -> Iterator[str]:
    """Object, access and reply of a request."""
    if not issubclass(cls, base.Request):
        return
    label = " ".join(cls.OBJECT)
    yield f"Object: {f'`{label}`' if label else 'the receiver'}"
    yield f"access: {cls.ACCESS}"
    yield f"reply: `{cls.reply_kind().__name__}`"


def rows(cls: type[msgspec.Struct]) -> Iterable[str]:
    """One line per field."""
    hints = get_type_hints(cls)
    notes = field_notes(cls)
    for field in msgspec.structs.fields(cls):
        default = "" if field.default is msgspec.NODEFAULT else f" = {field.default!r}"
        kind = f"{type_name(hints[field.name])}{default}".replace("|", "\\|")
        yield f"| `{field.name}` | `{kind}` | {notes.get(field.name, '')} |"


def type_name(hint: Any) -> str:
    """A type as one writes it."""
    if isinstance(hint, ForwardRef):
        return hint.__forward_arg__
    arguments = get_args(hint)
    if not arguments:
        return getattr(hint, "__name__", "...") if hint is not Ellipsis else "..."
    names = [type_name(argument) for argument in arguments]
    if isinstance(hint, types.UnionType):
        return " | ".join(names)
    return f"{getattr(get_origin(hint), '__name__', hint)}[{', '.join(names)}]"


def paragraphs(described: object) -> str:
    """A docstring as Markdown."""
    return plain(inspect.getdoc(described) or "")


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    if arguments not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    pages = {
        ROOT / "docs" / "protocol.md": page(),
        ROOT / "docs" / "reference.md": reference.page(),
    }
    if arguments:
        return max(check(path, new) for path, new in pages.items())
    for path, new in pages.items():
        path.write_text(new)
    return 0


def check(path: Path, new: str) -> int:
    """1, and the difference, if a page is not what the code says."""
    old = path.read_text() if path.exists() else ""
    if old == new:
        return 0
    difference = difflib.unified_diff(old.splitlines(), new.splitlines(), "page", "code", n=1)
    print("\n".join(list(difference)[:40]))
    print(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
