"""Windowed popularity of items: the counting, the view that readers keep, and the faust application.

Must not know a model or a service.
"""
