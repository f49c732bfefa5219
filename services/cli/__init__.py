"""The `headrace` command: one file for each group of commands, and how they talk to people and programs.

Nothing at the top of a file imports torch, Kafka or gRPC: `--help` must be quick.
"""
