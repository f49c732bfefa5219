"""The projector: interactions in, per-user histories out.

Must not know a model.
"""
