"""Who is delivered next: the exchange, schedules, chaos, and the two brokers over them.

``exchange.py`` holds every message that was sent and not yet delivered; ``router.py`` runs it
over ZeroMQ between real processes, ``simulator.py`` inside one process.  A node cannot tell which.
May import ``nodes`` and ``protocol``; imported by ``oracle`` and above.
"""
