"""How a person, or another program, sees a run.

``arguments.py`` is what the command line takes.  ``terminal.py`` is the summary, ``violation.py``
the report of one violation, ``machine.py`` the same as one JSON object, ``catalogue.py`` the list
of races, ``searches.py`` and ``story.py`` what a search leaves and says; ``directory.py`` says
where a run is put and ``progress.py`` what is shown meanwhile.  Nothing here changes a verdict.
May import everything below it; imported by ``launch.py`` alone.
"""
