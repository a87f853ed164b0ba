"""What a representation is worth: one generator told nothing, its own first sample, labels, generated and real z."""
