"""The oracle's rules as people read them."""

from __future__ import annotations

from typing import Any, Final

from rich import box
from rich.table import Table

from mmurace.oracle.rules.table import Rule, rules

KINDS: Final = {
    "owed": "somebody has not done what they owe; nobody need have been hurt yet",
    "harm": "somebody was hurt: memory reached, a store lost, or a wait without end",
    "cost": "right, but needlessly expensive",
}


def rules_table() -> Table:
    """All of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="")
    for head in ("rule", "kind", "called", "says"):
        table.add_column(head, overflow="fold")
    for rule in rules():
        table.add_row(rule.id, rule.kind, rule.name, rule.sentence)
    return table


def rule_page(rule: Rule) -> str:
    """One of them."""
    rooms = ", ".join(f"oracle/rules/{room}.py" for room in rule.rooms)
    judged = rooms or ("a plug-in" if rule.judge else "not judged yet")
    return "\n".join([
        f"{rule.id} {rule.name} ({rule.kind}: {KINDS[rule.kind]})", "", rule.sentence, "",
        f"Look first at {rule.look_at}.", f"Judged in: {judged}",
    ])  # fmt: skip


def rule_dict(rule: Rule) -> dict[str, Any]:
    """The same for programs."""
    return {
        "id": rule.id, "kind": rule.kind, "name": rule.name, "sentence": rule.sentence,
        "look_at": rule.look_at, "rooms": list(rule.rooms),
    }  # fmt: skip
