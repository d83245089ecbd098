"""How well an encoder finds what people looked for, and whether a new one is accepted. Trains nothing."""
