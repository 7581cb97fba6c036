"""The files that a run leaves: result, models, int8 model, evidence, statement. Knows experiments; not runtimes."""
