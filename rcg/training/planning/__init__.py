"""From a folder of pictures and some minutes to an experiment: what fits, how long it takes, what to expect."""
