"""Real captioned pictures: packaged collections, folders and tables."""
