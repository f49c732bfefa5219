"""From user states to items: beam search over the trie, exact dense neighbours, and both as the generator.

Must not know the live statistics, the ranker's scores or a stream.
"""
