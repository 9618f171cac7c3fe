"""``python -m mmurace``, and what the command ``mmurace`` runs: launch.py, as a program."""

from __future__ import annotations

import runpy


def command() -> None:
    """Run the command line; does not return."""
    runpy.run_module("mmurace.launch", run_name="__main__")


if __name__ == "__main__":
    command()
