"""Helpers that any package may use: threads, files, linear algebra, validation and warnings.

They are internal: their names may change without notice.
"""
