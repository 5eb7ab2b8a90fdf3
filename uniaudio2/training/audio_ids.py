"""The ids of the audio streams of a new language model."""

from ..modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig


def audio_ids(config: ReasoningCodecConfig) -> dict[str, int]:
    """The ids of the audio streams, laid out as in the release: codes, then bos, eos, one unused, pad.

    The ids around an audio prompt are ids of the joint table. In the release they coincide with codes; here they
    follow the specials of the reconstruction stream.
    """
    reasoning, reconstruction = config.reasoning_codebook_size, config.reconstruction_codebook_size
    offset = reasoning + 4
    return {
        "num_codebooks": config.num_codebooks,
        "reasoning_vocab_size": reasoning + 4,
        "reconstruction_vocab_size": reconstruction + 8,
        "reasoning_codebook_size": reasoning,
        "reconstruction_codebook_size": reconstruction,
        "reasoning_bos_token_id": reasoning,
        "reasoning_eos_token_id": reasoning + 1,
        "reasoning_pad_token_id": reasoning + 3,
        "reconstruction_bos_token_id": reconstruction,
        "reconstruction_eos_token_id": reconstruction + 1,
        "reconstruction_pad_token_id": reconstruction + 3,
        "audio_prompt_bos_token_id": offset + reconstruction + 4,
        "audio_prompt_eos_token_id": offset + reconstruction + 5,
    }
