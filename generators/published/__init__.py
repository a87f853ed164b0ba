"""Published checkpoints -> ours and back; one file for each kind."""
