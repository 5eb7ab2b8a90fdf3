"""The feature extractor."""
