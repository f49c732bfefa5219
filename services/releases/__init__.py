"""Releases between the learner and the services: the store, and how all know which one is live.

Must not know what a service does with one.
"""
