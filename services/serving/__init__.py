"""Gateway, generator and ranker in one process, with one copy of the model: how one machine answers.

Must not know how each of them answers by itself.
"""
