"""What all rooms share: files, pictures, processes, the environment, and old names of modules."""
