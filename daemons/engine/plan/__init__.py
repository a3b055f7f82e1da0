"""What a model needs of a GPU, worked out before it is loaded. Bytes throughout; GiB only when shown."""
