"""Studies: variants of a training, each with several seeds, scored alike and laid side by side."""
