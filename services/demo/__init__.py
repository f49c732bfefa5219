"""`headrace demo`: the whole river on real data, looked at while it flows.

Must not know how the services are made: it is a client like any other.
"""
