"""``conform``: held against what others measured."""

from __future__ import annotations

from pathlib import Path


def conform(
    suite: str, files: list[Path], kernel: str, switches: list[str], as_json: bool
) -> int:  # fmt: skip
    """Run the rows of tables of real kernels, and say what differs."""
    from mmurace.report.conform import conform as hold

    return hold(suite, files, kernel, switches, as_json)
