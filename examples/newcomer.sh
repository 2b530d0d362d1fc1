#!/bin/sh
# In a clone: from images whose file names are the captions (red_apple.jpg) to a saved classifier.
set -e
pip install ".[starter]"
sklearn-ape fit photos/ --captions filename --labels "an animal,food,a vehicle" -o my-classifier
sklearn-ape classify photos/ --aligner my-classifier -o names.csv
sklearn-ape search photos/ --query "something to eat" -k 3
