"""The learner: the stream learned without end, checkpoints, releases cut and gated; `cold_start` begins it.

Must not know another service.
"""
