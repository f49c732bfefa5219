"""The projector: interactions in, per-user histories out."""
