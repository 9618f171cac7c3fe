"""Small mistakes in kernel code, one after the other: who notices them, and how soon?

    python benchmarks/mutants/run.py [--only ID]... [--by hunt,programs,catalogue,suite]
                                     [--seconds N] [--jobs N] [--suite all] [--again]

The mistakes are in ``mutants.toml``.  Each is planted into a copy of what git tracks, never into
the checkout, and shown to

- *hunt*: ``launch.py hunt`` on the kernels on which the mistake is alive, ``--seconds`` in all;
- *programs*: the random programs of ``programs.py``, as long;
- *catalogue*: every kernel of every race on which nothing may happen, with its recipe;
- *suite*: the test files of the subsystem, or (``--suite all``) every test without processes.

Seconds are of processor time.  What the hunt or a program finds is then tried on the unmutated
code: what breaks there, too, is not noticed.  Answers are kept in ``--results``, and only what is
missing there is asked; ``--table`` prints what is in it.  Copies go at the end, or else when this
is started the next time.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from benchmarks.mutants.command import main

    sys.exit(main(__doc__))
