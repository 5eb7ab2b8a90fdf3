"""
The metrics, one module each, imported when they are used.

Each module is complete in itself: `evaluate.load("uniaudio2/evaluation/metrics/word_error_rate.py")` gives its class
too.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..metric import ItemMetric

# The name in suites -> the module and the class in it.
METRICS = {
    "caption_similarity": "CaptionSimilarity",
    "clap_score": "ClapScore",
    "class_divergence": "ClassDivergence",
    "classification": "Classification",
    "frechet_distance": "FrechetDistance",
    "intelligibility": "Intelligibility",
    "judge": "Judge",
    "mel_distance": "MelDistance",
    "opinion_score": "OpinionScore",
    "perceptual_quality": "PerceptualQuality",
    "signal_distortion": "SignalDistortion",
    "speaker_similarity": "SpeakerSimilarity",
    "speed": "Speed",
    "token_perplexity": "TokenPerplexity",
    "token_probe": "TokenProbe",
    "token_recognition": "TokenRecognition",
    "utmos": "Utmos",
    "word_error_rate": "WordErrorRate",
}


def load_metric(name: str, **options) -> "ItemMetric":
    """
    A metric by name, with its options.

    Raises:
        ValueError: if there is no such metric, or it has no such option.
        ImportError: if a package of the metric is not installed.
    """
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}. The metrics are: {', '.join(METRICS)}.")
    try:
        module = import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        raise ImportError(f"The metric {name} needs {error.name}: pip install 'uniaudio2[evaluate]'") from error
    return getattr(module, METRICS[name])(**options)
