"""The value of a representation: one generator without a condition, with labels, with generated and with real z."""
