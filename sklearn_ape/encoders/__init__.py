"""Frozen, pretrained encoders as scikit-learn transformers."""
