"""From histories to states, items and scores: the engine, its beam search over the trie and exact neighbours.

Must not know the live statistics or a stream.
"""
