"""Pictures and captions: from files on disk to batches of tensors."""
