"""What administrators change and see of the store: by kind, in batches, each change with its line in the account."""
