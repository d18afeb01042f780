"""What any run does around its method: stages, checkpoints, logs, pictures, processes."""
