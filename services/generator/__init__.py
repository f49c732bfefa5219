"""The generator: user history in, k distinct valid items out.

Must not know the ranker, or a policy.
"""
