"""Every weight: trunks, depth decoder, item identities, the recommender of them, the ranker's network.

Tensors in, tensors out. Must not know the catalogue, a search, statistics or how weights are trained.
"""
