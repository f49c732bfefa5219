"""A Kafka broker of one node for one machine: what it confirms is on disk.

It speaks Kafka's protocol (the message schemas come with kafka-python) and keeps record batches as clients
send them, in Kafka's own log format. It has no transactions, no replication and no security, and listens on
loopback: for anything else Headrace runs on Apache Kafka. `python -m streaming.broker --help`.

Must not know Headrace's topics, what their records say, or who its clients are.
"""
