"""The trends service: interactions in, windowed popularity and item counters out.

Must not know a model.
"""
