"""What must never happen: the merged trace read, obligations, invariants, verdicts.

What lives here: happens-before, the state that the records imply (entries, frames, what every
cache holds), the rules of the catalogue's section 5, the conditions that show that a race window
was entered, and the verdict.  It reads the trace and the ``World`` and nothing else: it does not
know which scenario runs.  Imports ``nodes.world`` and ``protocol``; is imported by
``scenarios``, ``explorer``, ``report`` and ``launch.py``.
"""
