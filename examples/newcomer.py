"""
From images to a saved classifier
===================================

The images are in ``photos/``. Their file names are the captions, such as ``red_apple.jpg``.
Install with ``pip install "sklearn-ape[starter]"``.
"""

from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.datasets import load_image_folder
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_image_folder("photos/", captions="filename")
encoders = {"image_encoder": TimmImageEncoder(), "text_encoder": TransformersTextEncoder()}
aligner = APEAligner(**encoders, random_state=0).fit(data.images, data.captions)
classifier = ZeroShotClassifier(["an animal", "food", "a vehicle"], aligner=aligner)
classifier.save_pretrained("my-classifier")
print(classifier.predict(data.images)[:5])
