"""
From images to a saved classifier
===================================

The images are in ``photos/``. Their file names are the captions, such as ``red_apple.jpg``.
Install with ``pip install ".[starter]"`` in a clone of the repository.
"""

from sklearn.model_selection import train_test_split

from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.datasets import load_image_folder

data = load_image_folder("photos/", captions="filename")
X_train, X_test, y_train, _ = train_test_split(data.images, data.captions, random_state=0)
aligner = APEAligner(init="starter", random_state=0).fit(X_train, y_train)
classifier = ZeroShotClassifier(["an animal", "food", "a vehicle"], aligner=aligner)
classifier.save_pretrained("my-classifier")
print(classifier.predict(X_test)[:5])
