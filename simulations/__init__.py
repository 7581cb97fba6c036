"""Which runs are compared, and what the tables say. Not part of the installed package."""
