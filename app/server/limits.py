"""Bounds on what one client may take from the others."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Bytes, seconds, counts."""

    parallel: int = 8  # answers computed together
    queue: int = 256  # answers under way and waiting
    seconds: float = 3600.0  # of a request, its waiting included
    body_bytes: int = 16 * 2**20  # the longest context as token ids takes 1.2 MB
    body_seconds: float = 30.0  # in which a body must have come
    held_bytes: int = 256 * 2**20  # of all bodies that are read or parsed
    bodies: int = 64  # read at once; a further one ends the one that has taken longest
    head_seconds: float = 20.0  # in which the head of a request must have come
    keep_alive_seconds: float = 120.0  # longer than clients keep an idle connection (Go 90 s, nginx 60 s, aiohttp 15 s)
    silence_seconds: float = 5.0  # of a stream, after which a comment shows that it lives
    buffered: int = 8192  # events that a slow reader may leave waiting
    grace_seconds: float = 5.0  # that answers have to end after SIGTERM
    connections: int = 512  # a further one ends the one that has been idle longest
    choices: int = 128  # answers that one request may ask for
    stops: int = 64
    stop_length: int = 1000  # characters
    tokenize_characters: int = 2**19  # of one text: half a second of work
    detokenize_tokens: int = 2**18
