"""What a frozen model knows: features, scores, figures, and the report of a run."""
