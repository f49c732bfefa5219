"""`headrace train`: the first release, offline, from a data folder or the topics, and how it goes live.

Must not know the command line.
"""
