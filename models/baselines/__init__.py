"""What Headrace is compared with: TIGER, DIN, popularity, and other ways to decode.

Nothing that serves or learns imports it.
"""
