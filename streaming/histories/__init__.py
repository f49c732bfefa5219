"""The per-user histories: the store with its stream position, what is not in it yet, and who fills it.

Must not know a model or a service.
"""
