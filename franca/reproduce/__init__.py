"""`franca reproduce`: a recipe's run again, compared with the curve that was recorded of it.

Two runs of one seed are the same bit for bit only on one machine with one version of torch: elsewhere sums are rounded
in another order, and a difference in the last bit grows within some dozen steps to that between two seeds. So what a
recipe promises is not a curve but a band: the mean over recorded seeds, and around it a tolerance that comes from how
far those seeds lie apart (`franca.reproduce.tolerance`). A run that learns as the recorded ones did is a further draw
from the same spread, whatever its seed, machine or number of threads; `franca.reproduce.comparison` says what counts as
outside.

Records are small JSON files in configs/recipes/recorded; nothing of them is executed.
"""
