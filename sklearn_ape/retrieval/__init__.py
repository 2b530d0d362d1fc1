"""Search in a collection of images, by words or by images."""

from ._retriever import CrossModalRetriever, SearchResult

__all__ = ["CrossModalRetriever", "SearchResult"]
