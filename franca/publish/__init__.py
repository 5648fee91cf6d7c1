"""``python -m franca.publish``: a training run as a folder that others can use, check and continue from."""
