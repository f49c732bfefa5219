"""What is on the topics: their names, the messages, bytes and back, what is valid, what an event means.

Must not know a client, a broker or who reads.
"""
