"""`headrace up`: broker and services as children of one process, their ports and their ends.

Must not know what a service does, except whether it needs a live release.
"""
