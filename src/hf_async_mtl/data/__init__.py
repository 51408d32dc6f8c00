"""The way of the data: files or Hub, labels and tokens, one mixed index space, packed batches."""
