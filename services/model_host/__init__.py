"""What hosts a model in a process: its one thread, micro-batches, the live release, its items and its events.

Must not know which services answer from it, or what is asked of them.
"""
