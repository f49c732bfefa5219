"""Offline training: the objective and its losses, the recommender's stages, fitting the ranker.

Must not know a stream, a checkpoint or a protocol of evaluation.
"""
