"""Figures as PNG files: losses and scores, PCA of patch features, attention, masks."""
