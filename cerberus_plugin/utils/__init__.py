"""Shared functions: files, images, folders, processes, the environment, and old names of modules."""
