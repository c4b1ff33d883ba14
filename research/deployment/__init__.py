"""Other people's engines, and what we put where they stop: which machines take part in a run.

`elastic` goes on with the machines that are left when some die, hang or leave.
"""
