"""The ranker: history and candidates in, one score and the action probabilities for each out.

Must not know the generator, or a policy.
"""
