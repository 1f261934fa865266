"""The worker: claims jobs, forms batches, decodes them and stores the results."""
