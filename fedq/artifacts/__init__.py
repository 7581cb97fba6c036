"""The files a run leaves: result, models, int8 model, evidence, statement. Knows an experiment; not how it was run."""
