"""The feature extractor."""

from .feature_extraction_uniaudio2 import UniAudio2FeatureExtractor

__all__ = ["UniAudio2FeatureExtractor"]
