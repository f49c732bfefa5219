"""Everything that speaks Kafka's protocol, and the contract of what is said.

Hands batches of events to callables. Must not know torch, gRPC or a service.
"""
