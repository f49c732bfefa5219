"""The 64-bit number that stands for a user where the id itself is not needed: between services, in caches."""

import hashlib


def user_key(user_id: str) -> int:
    """1 to 2^64 - 1, the same in every process; 0 is left for "no user"."""
    return int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest(), "big") or 1
