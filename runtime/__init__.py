"""Everything that moves bytes and time: weights, cache, sampling, the engine."""
