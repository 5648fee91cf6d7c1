"""What the benchmarks of training share: synthetic batches, time by part, waits, the objective alone, tables."""
