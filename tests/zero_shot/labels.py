"""Classes of the images in `conftest.py`, each with several names."""

LABELS = {
    "travel": ["a vehicle", "a building", "a landscape"],
    "animal": ["an animal", "a bird", "a plant"],
    "food": ["food", "a fruit", "a meal"],
}
