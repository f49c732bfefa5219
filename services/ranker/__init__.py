"""The ranker: history and candidates in, one score and the action probabilities for each out."""
