"""Content embeddings and the codes that stand for them: codebooks, how they are fitted, texts embedded.

Knows vectors and codes. Must not know items, users or networks.
"""
