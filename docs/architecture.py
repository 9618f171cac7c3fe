"""Draw the picture of ``docs/architecture.md`` from the imports: layers, rooms, who uses whom.

``python docs/architecture.py`` writes it into the page, ``--check`` only says whether it is up to
date (exit status 1 if not).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "architecture.md"
LAYERS: Final = (
    "report",
    "campaign",
    "conform",
    "explorer",
    "scenarios",
    "oracle",
    "broker",
    "nodes",
    "protocol",
)
"""From the top; each may use what is below it."""
PACKAGE: Final = "mmurace."
BEGIN: Final = "<!-- Made by docs/architecture.py from the imports.  Do not edit. -->\n"
END: Final = "<!-- End of what was made. -->\n"

Edges = dict[str, set[str]]


def rooms() -> dict[str, list[Path]]:
    """Folders with code -> its files; empty packages are no rooms."""
    found: dict[str, list[Path]] = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            if path.name != "__init__.py" or len(_statements(path)) > 1:
                found.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
    return found


def _statements(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(), str(path)).body


def imported(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, as paths: ``nodes/kernel/rmap``."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            module = (node.module or "").removeprefix(PACKAGE).replace(".", "/")
            yield module
            yield from (f"{module}/{alias.name}" for alias in node.names)


def uses(known: dict[str, list[Path]]) -> Edges:
    """Which room uses which others."""
    edges: Edges = {room: set() for room in known}
    for room, files in known.items():
        for module in (module for path in files for module in imported(path)):
            home = _room_of(module, known)
            if home and home != room:
                edges[room].add(home)
    return edges


def _room_of(module: str, known: dict[str, list[Path]]) -> str:
    """The room that a module is in; empty: it names no file."""
    if (ROOT / f"{module}.py").exists():
        return str(Path(module).parent)
    return module if module in known and (ROOT / module / "__init__.py").exists() else ""


def drawn(edges: Edges) -> Iterator[tuple[str, str]]:
    """What an arrow is drawn for: what does not follow from other arrows.

    Of rooms that use one another the first stands for all, seen from outside.
    """
    reach = {room: _reachable(room, edges) for room in edges}

    def stands_for(one: str, room: str, other: str) -> bool:
        """The arrow from ``room`` to ``other`` follows from the one to, or from, ``one``."""
        if room in reach[one]:
            return one < room and other in edges[one]
        return other in reach[one] and (one not in reach[other] or one < other)

    for room, others in edges.items():
        for other in sorted(others):
            by = (one for one in reach[room] - {room, other} if one in others or room in reach[one])
            if room in reach[other] or not any(stands_for(one, room, other) for one in by):
                yield room, other


def _reachable(room: str, edges: Edges) -> set[str]:
    found: set[str] = set()
    todo = [room]
    while todo:
        for other in edges[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found


def picture() -> str:
    """The Mermaid text."""
    known = rooms()
    lines = ["```mermaid", "flowchart TB"]
    for layer in LAYERS:
        lines.append(f"  subgraph {layer}_layer [{layer}/]")
        for room in (room for room in known if room.split("/")[0] == layer):
            files = len(known[room])
            lines.append(f'    {_name(room)}["{room}<br/>{files} file{"s" * (files > 1)}"]')
        lines.append("  end")
    arrows = set(drawn(uses(known)))
    for room, other in sorted(arrows):
        if (other, room) not in arrows:
            lines.append(f"  {_name(room)} --> {_name(other)}")
        elif room < other:
            lines.append(f"  {_name(room)} <--> {_name(other)}")
    return "\n".join((*lines, "```", ""))


def _name(room: str) -> str:
    return room.replace("/", "_")


def page(old: str) -> str:
    """The page with the picture as the code has it now."""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} has no place for the picture")
    return before + BEGIN + picture() + END + after


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    if arguments not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    old = PAGE.read_text()
    new = page(old)
    if arguments and new != old:
        print(
            "docs/architecture.md is out of date: run python docs/architecture.py", file=sys.stderr
        )
        return 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
