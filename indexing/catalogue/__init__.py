"""The catalogue contract and how an item reads as text. No store, no encoder."""
