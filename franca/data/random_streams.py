"""Random numbers that depend on what they are for, never on who draws them or when.

Whatever is random about sample n comes from a generator made from (seed, n) alone, so a resumed run, another number
of workers or another machine sees the same images.
"""

import hashlib

import torch


def stream_seed(*key: str | int) -> int:
    """A number from 0 to 2**63 - 1 that is a function of the key, for example ("masks", seed, batch number)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def generator(*key: str | int) -> torch.Generator:
    """A CPU generator that starts at ``stream_seed(*key)``."""
    return torch.Generator().manual_seed(stream_seed(*key))


def shuffled(position: int, length: int, *key: str | int) -> int:
    """Where ``position`` goes in a random permutation of range(length) that is a function of the key.

    The permutation is never stored (600 million images would need gigabytes in every worker). Eight Feistel
    rounds permute 0 ... 4**bits - 1, the smallest such range that holds ``length``; a result outside range(length)
    is permuted again until it falls inside, which keeps the map one to one.
    """
    if not 0 <= position < length:
        raise IndexError(f"position {position} is outside range({length})")
    bits = max(1, (length - 1).bit_length() + 1 >> 1)
    low_bits = (1 << bits) - 1
    while True:
        left, right = position >> bits, position & low_bits
        for turn in range(8):
            left, right = right, left ^ (stream_seed(*key, turn, right) & low_bits)
        position = left << bits | right
        if position < length:
            return position
