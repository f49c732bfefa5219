"""A whole answer in one process: generator and scorer over the same weights.

What is benchmarked is what is served. Must not know releases, training or a stream.
"""
