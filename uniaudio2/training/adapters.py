"""Low-rank adapters for the stages of the language model (the paper trains with LoRA)."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from .language_model_stages import LanguageModelStageTrainer, model_parts

# Every matrix of a Llama layer, as the paper's rank is given without a choice among them.
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# What the text model brought: adapted and never changed, so that without adapters it is the text model again.
FROM_TEXT_MODEL = ("cross_modal", "text")


def add_adapters(
    model: PreTrainedModel, stage: type[LanguageModelStageTrainer], rank: int, alpha: int, dropout: float
):
    """
    Adapters on the cross-modal layers; the new parts that a stage trains, trained whole.

    Args:
        model (`UniAudio2ForConditionalGeneration`): The model.
        stage (`type[LanguageModelStageTrainer]`): Says which new parts learn.
        rank, alpha (`int`), dropout (`float`): Of [`~peft.LoraConfig`].

    Returns:
        `PeftModel`: With `disable_adapter()` its text logits are those of the text model it started from. Checkpoints
        hold the adapters and the new parts, `merge_and_unload()` gives a model without adapters.

    Raises:
        ImportError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'uniaudio2[train]'.") from error
    parts = model_parts(model.config)
    theirs = {module for part in FROM_TEXT_MODEL for module in parts[part]}
    layers = "|".join(name.rpartition(".")[2] for name in parts["cross_modal"] if ".layers." in name)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"model\.layers\.({layers})\..*\.({'|'.join(ADAPTED)})",
        modules_to_save=[name for name in stage.trained_modules(model) if name not in theirs],
    )
    # In the dtype of the model: mixed dtypes fail when ZeRO-3 lays parameters out side by side.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def load_adapters(model: nn.Module, folder: Path) -> None:
    """
    Go on with the adapters of an earlier stage.

    Args:
        model (`PeftModel`): With new adapters, as [`add_adapters`] made it.
        folder (`Path`): Theirs. New parts in it are not read: those of the model are theirs already.

    Raises:
        ValueError: If they have another rank, scale or layers.
    """
    from peft import PeftConfig, load_peft_weights

    theirs, (mine,) = PeftConfig.from_pretrained(folder), model.peft_config.values()
    names = {"r": "lora.rank", "lora_alpha": "lora.alpha", "target_modules": "layers"}
    for name, word in names.items():
        if getattr(theirs, name) != getattr(mine, name):
            raise ValueError(
                f"The adapters in {folder} have {word} {getattr(theirs, name)}, but the recipe "
                f"{getattr(mine, name)}: take theirs, or remove the folder to start new ones on the merged model."
            )
    # Not by peft's `set_peft_model_state_dict`, which wants the new parts of this stage too.
    parameters = dict(model.named_parameters())
    for name, value in load_peft_weights(folder, device="cpu").items():
        if "lora_" in name:  # peft leaves the name of the adapter out of its files
            module, _, leaf = name.rpartition(".")
            parameters[f"{module}.default.{leaf}"].data.copy_(value)
