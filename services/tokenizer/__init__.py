"""The tokenizer: announced items in, stable semantic IDs out."""
