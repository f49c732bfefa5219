"""The gateway: the public API, orchestration, policy, fallback and the web console.

Must not know a model: it asks the services behind it.
"""
