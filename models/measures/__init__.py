"""Numbers that say how good answers were: ranks, metrics, windows of quality, the gate's test.

Must not know who answered.
"""
