"""Preparing large sets: rows of LAION's metadata, near-duplicates, images that evaluation sets hold too.

`python -m franca.data.preparation` lists the steps; dataset_prep.md shows them in order.
"""
