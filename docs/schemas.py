"""Write the JSON Schemas of the TOML files that people write: ``docs/schema/*.schema.json``.

``python docs/schemas.py`` writes them, ``--check`` only says whether they are up to date (exit
status 1 if not).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mmurace.scenarios.schema import SCHEMAS

ROOT = Path(__file__).resolve().parent / "schema"


def texts() -> dict[Path, str]:
    """File -> what is to be in it."""
    return {
        ROOT / f"{name}.schema.json": json.dumps(make(), indent=1, ensure_ascii=True) + "\n"
        for name, make in SCHEMAS.items()
    }


def main() -> int:
    """Write or check them; the exit status."""
    stale = [p for p, text in texts().items() if not p.exists() or p.read_text() != text]
    for path in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path} is out of date: python docs/schemas.py")
        else:
            path.write_text(texts()[path])
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
