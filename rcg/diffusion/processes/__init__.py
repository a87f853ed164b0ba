"""How data is corrupted and what is asked of the network."""
