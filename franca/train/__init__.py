"""Pretraining: ``python -m franca.train --config FILE [key=value …]``."""
