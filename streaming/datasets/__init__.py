"""Folders of data as people have them: tables and columns read, checked, and sent as a stream.

Must not know a model or a service.
"""
