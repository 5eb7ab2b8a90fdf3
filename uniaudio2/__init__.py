"""UniAudio 2.0 for transformers.

Importing this package registers its classes with transformers' Auto classes, so that `AutoModel...`, `AutoProcessor`
and `pipeline("text-to-audio", model=...)` find them.
"""

from importlib import import_module
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForTextToWaveform,
    AutoProcessor,
)

from .feature_extraction.feature_extraction_uniaudio2 import UniAudio2FeatureExtractor
from .long_form import speak_long, transcribe_long
from .modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from .modeling_uniaudio2.configuration_reasoning_codec_text import ReasoningCodecTextConfig
from .modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config, UniAudio2DepthDecoderConfig
from .modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from .modeling_uniaudio2.modeling_reasoning_codec_text import ReasoningCodecForConditionalGeneration
from .modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration, UniAudio2Model
from .processing.data_collator import UniAudio2DataCollator
from .processing.processing_reasoning_codec_text import ReasoningCodecTextProcessor
from .processing.processing_uniaudio2 import UniAudio2Processor
from .processing.tasks import TASKS
from .streaming import stream

__version__ = "0.1.0"

# The folder of the small checkpoint that is shipped with the package.
TINY = str(Path(__file__).parent / "checkpoints" / "tiny")

AutoConfig.register(UniAudio2Config.model_type, UniAudio2Config, exist_ok=True)
AutoModel.register(UniAudio2Config, UniAudio2Model, exist_ok=True)
AutoModelForTextToWaveform.register(UniAudio2Config, UniAudio2ForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(UniAudio2Config, UniAudio2ForConditionalGeneration, exist_ok=True)
AutoFeatureExtractor.register(UniAudio2Config, UniAudio2FeatureExtractor, exist_ok=True)
AutoProcessor.register(UniAudio2Config, UniAudio2Processor, exist_ok=True)

AutoConfig.register(ReasoningCodecConfig.model_type, ReasoningCodecConfig, exist_ok=True)
AutoModel.register(ReasoningCodecConfig, ReasoningCodecModel, exist_ok=True)
AutoModelForAudioTokenization.register(ReasoningCodecConfig, ReasoningCodecModel, exist_ok=True)
AutoFeatureExtractor.register(ReasoningCodecConfig, UniAudio2FeatureExtractor, exist_ok=True)

AutoConfig.register(ReasoningCodecTextConfig.model_type, ReasoningCodecTextConfig, exist_ok=True)
AutoModelForCausalLM.register(ReasoningCodecTextConfig, ReasoningCodecForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(ReasoningCodecTextConfig, ReasoningCodecForConditionalGeneration, exist_ok=True)
AutoFeatureExtractor.register(ReasoningCodecTextConfig, UniAudio2FeatureExtractor, exist_ok=True)
AutoProcessor.register(ReasoningCodecTextConfig, ReasoningCodecTextProcessor, exist_ok=True)

__all__ = [
    "TASKS",
    "TINY",
    "ReasoningCodecConfig",
    "ReasoningCodecForConditionalGeneration",
    "ReasoningCodecModel",
    "ReasoningCodecTextConfig",
    "ReasoningCodecTextProcessor",
    "UniAudio2Config",
    "UniAudio2DataCollator",
    "UniAudio2DepthDecoderConfig",
    "UniAudio2FeatureExtractor",
    "UniAudio2ForConditionalGeneration",
    "UniAudio2Model",
    "UniAudio2Processor",
    "speak_long",
    "stream",
    "transcribe_long",
]

# Loaded when they are asked for: they need the extra `train`, and `import uniaudio2` must stay quick.
_TRAINERS = {
    "AudioTextPretrainingTrainer": "language_model_stages",
    "GenerationWarmupTrainer": "language_model_stages",
    "MidTrainingTrainer": "language_model_stages",
    "ReasoningGRPOTrainer": "reasoning_grpo",
    "ReasoningSFTTrainer": "codec_stages",
    "ReconstructionTrainer": "codec_stages",
    "ScalarCodecTrainer": "scalar_codec",
    "UnderstandingWarmupTrainer": "language_model_stages",
}


def __getattr__(name: str):
    if name in _TRAINERS:
        return getattr(import_module(f".training.{_TRAINERS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *_TRAINERS))
