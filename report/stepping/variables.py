"""What a debugger may open at one place of a run: numbers for frames and groups of variables."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mmurace.explorer.step.stacks import Stack, StackFrame
from mmurace.explorer.step.state import State
from mmurace.report import formats

VALUE_LENGTH_MAX: Final = 200
Variable = tuple[str, str]
"""(name, value)."""


class Variables:
    """Frames and groups of one place, numbered as they are asked for."""

    def __init__(self, state: State, changes: list[tuple[str, str, str, str]]) -> None:
        self.state, self.changes = state, changes
        self._frames: list[tuple[str, StackFrame | None]] = []
        self._groups: list[dict[str, str] | list[tuple[str, int]]] = []

    def frame(self, node: str, frame: StackFrame | None) -> int:
        """The number of a frame of a node; None: the label of a thread."""
        self._frames.append((node, frame))
        return len(self._frames)

    def node_of(self, frame: int) -> str:
        """Whose frame that is; empty: there is no such frame."""
        return self._frames[frame - 1][0] if 0 < frame <= len(self._frames) else ""

    def scopes(self, frame: int) -> list[dict[str, Any]]:
        """The groups of a frame: its node, the function's locals, what changed, all nodes.

        None if there is no such frame.
        """
        if not self.node_of(frame):
            return []
        node, function = self._frames[frame - 1]
        groups: list[tuple[str, dict[str, str] | list[tuple[str, int]]]] = [
            (node, self.state.get(node, {}))
        ]
        if function is not None:
            groups.append(("Locals", locals_of(function)))
        groups.append(("Changed by the last delivery", changes_of(self.changes)))
        nodes = [(name, self._number(fields)) for name, fields in self.state.items()]
        groups.append(("All nodes", nodes))
        return [
            {"name": name, "variablesReference": self._number(group), "expensive": False}
            for name, group in groups
        ]

    def variables(self, number: int) -> list[dict[str, Any]]:
        """The variables of a group; none if there is no such group."""
        group = self._groups[number - 1] if 0 < number <= len(self._groups) else {}
        if isinstance(group, dict):
            return [
                {"name": name, "value": text, "variablesReference": 0}
                for name, text in group.items()
            ]
        return [{"name": name, "value": "", "variablesReference": inner} for name, inner in group]

    def value_of(self, expression: str, frame: int) -> str | None:
        """The value of a field by its name, in the frame's node first, or as ``node.name``."""
        own = self.node_of(frame)
        for node in dict.fromkeys(filter(None, (own, *self.state))):
            fields = self.state.get(node, {})
            for name in (expression, expression.removeprefix(f"{node}.")):
                if name in fields:
                    return fields[name]
        return None

    def _number(self, group: dict[str, str] | list[tuple[str, int]]) -> int:
        self._groups.append(group)
        return len(self._groups)


def locals_of(frame: StackFrame) -> dict[str, str]:
    """The locals of a function as text."""
    return {name: value_text(value) for name, value in frame.values}


def changes_of(changes: list[tuple[str, str, str, str]]) -> dict[str, str]:
    """``node: name`` -> ``before -> after``."""
    return {
        f"{node}: {name}": f"{before or 'not there'} -> {after or 'gone'}"
        for node, name, before, after in changes
    }


def value_text(value: Any) -> str:
    """A local as people read it: numbers as the kernel prints addresses, objects by their kind."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        text = str(value)
    elif isinstance(value, int):
        text = f"{value:#x} ({value})" if value > 9 else str(value)
    elif isinstance(value, tuple | list):
        text = f"({', '.join(map(value_text, value))})"
    elif isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value).items()
        text = f"{type(value).__name__}({', '.join(f'{k}={value_text(v)}' for k, v in fields)})"
    else:
        text = f"<{type(value).__name__} {getattr(value, 'name', '')}>".replace(" >", ">")
    return formats.plain(text)[:VALUE_LENGTH_MAX]


def label_of(stack: Stack) -> str:
    """What stands below the functions of a thread."""
    return f"for {stack.operation}: waits for {stack.waits_for}"
