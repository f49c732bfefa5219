"""The gateway: the public API, orchestration, policy, fallback and the web console."""
