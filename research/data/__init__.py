"""Data: rows, token ids, packing, and batches that are a pure function of (seed, step)."""
