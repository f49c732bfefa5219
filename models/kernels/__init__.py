"""Fused kernels, each beside the plain form that says the same.

Arrays and tensors in, arrays and tensors out. Must not know modules, the catalogue or a search.
"""
