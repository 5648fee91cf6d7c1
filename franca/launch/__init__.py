"""``python -m franca.launch``: a training run as a job of SLURM, or as several processes on this machine."""
