"""Internal helpers that any package may use; their names may change without notice."""
