"""The packet that every reply carries. Algorithms, codec and wire agree on its name, and none imports another."""

UPDATE = "update"  # local weights minus global weights
