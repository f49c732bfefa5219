"""Releases between the learner and the services: the store, and who says and sees which is live.

Must not know what a service does with one.
"""
