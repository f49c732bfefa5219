"""The tokenizer: announced items in, stable semantic IDs out.

Must not know users or events.
"""
