"""Kafka's clients as Headrace uses them: producers, consumers, readers to the end, dead letters, topics.

Knows records and positions. Must not know what is made of them.
"""
