"""What to run: the catalogue of races, and workloads imported from logs or generated.

What lives here: one TOML file per race and its loader, the importer for strace logs, the
generator of the mixed workload, and ``RunSpec``, which holds all that is needed to run once and
to run it again.  Imports ``oracle``, ``broker``, ``nodes`` and ``protocol``; is imported by
``explorer`` and ``launch.py``.
"""
