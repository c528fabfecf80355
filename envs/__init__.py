"""Worlds that change: seeded vector environments, what changes in them (shifts) and when (timetables)."""
