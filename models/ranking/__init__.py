"""From candidates to scores: live statistics, the features and sources made of them, the scorer.

Time is the events'. Must not know how networks are trained, or a stream.
"""
