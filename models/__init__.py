"""The model: tokenizers, networks, decoding, ranking, learning; torch and arrays alone.

Must not know messages, gRPC, Kafka, settings from the environment, or the wall clock; it may measure
durations.
"""
