"""``schema`` and ``completion``: what editors and shells want to know."""

from __future__ import annotations

import json
from typing import Final

from mmurace.explorer.run import outcome as codes
from mmurace.protocol.errors import UserError
from mmurace.report.arguments import all_commands
from mmurace.report.commands.run import print_json
from mmurace.report.screen import write_out

SHELLS: Final = ("bash", "zsh", "tcsh", "fish")
MANUAL: Final = "man"


def schema(name: str, as_json: bool) -> int:
    """Print the JSON Schema of a kind of file; that is an object, asked for as one or not."""
    from mmurace.scenarios.schema import schema_of

    made = schema_of(name)
    if as_json:
        return print_json(made)
    write_out(json.dumps(made, indent=1, ensure_ascii=True))
    return codes.HELD


def completion(shell: str, as_json: bool) -> int:
    """Print a shell's completion of this program's words, or the manual page."""
    text = _manual() if shell == MANUAL else _completion(shell)
    if as_json:
        return print_json({shell: text})
    write_out(text.rstrip("\n"))
    return codes.HELD


def _manual() -> str:
    from mmurace.report.manual import manual

    return manual(all_commands())


def _completion(shell: str) -> str:
    """Raises ``UserError`` for another shell, and where what makes it is not installed."""
    if shell not in SHELLS:
        raise UserError(
            "completion", f"no shell {shell!r}", f"one of {', '.join(SHELLS)}, {MANUAL}"
        )
    try:
        import shtab
    except ImportError:
        extra = "pip install 'mmu-notifier-emulator[completion]'"
        raise UserError("completion", "shtab is not installed", extra) from None
    parser = all_commands().parser
    parser.prog = "mmurace"
    return str(shtab.complete(parser, shell))
