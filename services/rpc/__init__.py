"""gRPC around every service: server, interceptors, admission, statuses, clients, where state is.

Must not know what a service does.
"""
