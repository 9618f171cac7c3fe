"""The examples of the documentation, made once for all tests that use them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from mmurace.explorer.explain.why import Explanation
from mmurace.explorer.shrink.minimize import Minimized

ROOT = Path(__file__).resolve().parents[1]
_SPEC = spec_from_file_location("documented_examples", ROOT / "docs" / "examples.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _MODULE
_SPEC.loader.exec_module(_MODULE)

EXAMPLES: tuple[tuple[str, str], ...] = _MODULE.EXAMPLES
minimized: Callable[[str, str], Minimized] = _MODULE.minimized
explained: Callable[[str, str], Explanation] = _MODULE.explained
differences: Callable[[], list[str]] = _MODULE.differences
