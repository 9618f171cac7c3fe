"""The vocabulary that every part shares.

What lives here: the typed messages and their codec, page-table entries, ranges, notifier
events, trace records, limits and errors.  Nothing here knows who sends what to whom.
May be imported by everybody; imports nothing of this project.
"""
