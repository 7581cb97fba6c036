"""All code that depends on Flower's interfaces: the message format, the grid and Flower's private names."""
