"""How a person, or another program, sees a run.

``terminal.py`` is the summary, ``violation.py`` the report of one violation, ``machine.py`` the
same as one JSON object, ``catalogue.py`` the list of races; ``directory.py`` says where a run is
put and ``progress.py`` what is shown meanwhile.  Nothing here changes a verdict.
May import everything below it; imported by ``launch.py`` alone.
"""
