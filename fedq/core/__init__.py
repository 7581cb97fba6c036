"""Small modules that every package may use: keyed generators, atomic writes, JIT, text. Imports nothing of fedq."""
