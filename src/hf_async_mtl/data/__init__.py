"""Data: from files and Hub datasets to tokenized examples, mixed in one index space, and packed batches."""
