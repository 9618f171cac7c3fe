"""The picture is what the imports say, and the map leads to what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_the_picture_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/architecture.py", "--check"], cwd=ROOT, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_room_is_in_the_picture() -> None:
    layers = (
            "protocol", "nodes", "broker", "oracle", "scenarios", "explorer", "conform",
            "campaign", "report",
        )  # fmt: skip
    folders = {
        str(path.parent.relative_to(ROOT))
        for layer in layers
        for path in (ROOT / layer).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert folders == set(re.findall(r'\["([\w/]+)<br/>', TEXT))


def test_no_arrow_points_upwards() -> None:
    """The layers of the picture are in order: an arrow between two goes down."""
    order = re.findall(r"subgraph (\w+)_layer", TEXT)
    arrows = re.findall(r"^  (\w+) (<?-->) (\w+)$", TEXT, flags=re.MULTILINE)
    assert len(arrows) > len(order)
    for upper, arrow, lower in arrows:
        here, there = (order.index(room.partition("_")[0]) for room in (upper, lower))
        assert here < there or here == there, (upper, lower)
        assert arrow == "-->" or here == there
