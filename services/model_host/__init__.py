"""What hosts a model in a service: its one thread, micro-batches, and the catalogue kept up to date.

Must not know which model, or what is asked of it.
"""
