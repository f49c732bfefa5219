"""What users did, in order: histories, the windows that training reads, which events are known already.

Knows rows and action numbers. Must not know the catalogue or a network.
"""
