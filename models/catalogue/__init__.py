"""The items: id, row, semantic ID, content, availability, and the trie of valid semantic IDs.

Must not know users, events, networks or a stream.
"""
