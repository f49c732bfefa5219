"""Published protocols of evaluation: how events are split, and every system ranked on the same cases.

Nothing that serves or learns imports it.
"""
