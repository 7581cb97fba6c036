"""What speaks Flower: the message format, the grid and Flower's private names. Knows packets; not training."""
