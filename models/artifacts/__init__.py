"""Atomic directories on disk: checkpoints, manifests, releases; nothing in them can execute anything.

Must not know where releases are announced, or which one is live.
"""
