"""Small leaves that every package may use: keyed generators, atomic writes, JIT, wording. Imports nothing of fedq."""
