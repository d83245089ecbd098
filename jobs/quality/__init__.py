"""How good built shards are: recall, slices, where recall is lost, drift, gates. Decides nothing about publishing."""
