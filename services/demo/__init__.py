"""`headrace demo`: the whole river on real data, looked at while it flows.

Must not know how the services are made: it calls them over gRPC, writes to the topics as any producer may,
and reads the topic of releases.
"""
