"""The online learner: predict each event, then learn it; all that it remembers, and its checkpoint.

Events are columns and time is theirs. Must not know a stream, a clock or a release store.
"""
