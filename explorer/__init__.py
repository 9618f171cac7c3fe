"""Running things: one run with its oracle, replays, and (later) many schedules.

``session.py`` puts a scenario, a broker and the oracle together and says how it came out.
May import ``scenarios``, ``oracle``, ``broker`` and below; imported by ``report`` and
``launch.py``.
"""
