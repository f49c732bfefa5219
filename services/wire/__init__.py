"""Messages and the arrays and rows of `models`: translation, masks, keys, what requests may hold.

Must not know a server, a client or a topic.
"""
