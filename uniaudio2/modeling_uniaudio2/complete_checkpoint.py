"""Loading weights that must be complete."""


class CompleteCheckpointMixin:
    """Goes before [`~transformers.PreTrainedModel`]: random weights in the place of lost ones would only be heard."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As [`~transformers.PreTrainedModel.from_pretrained`], but a checkpoint of this very class must be complete.

        Raises:
            ValueError: If the checkpoint was saved from this class and lacks some of its weights, or if weights have
                other shapes (unless `ignore_mismatched_sizes=True`).
        """
        ignores_mismatches = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        faults = []
        if cls.__name__ in (model.config.architectures or []):
            faults += [f"{name} is missing" for name in sorted(info["missing_keys"])]
        if not ignores_mismatches:
            faults += [
                f"{name} has shape {tuple(found)} and not {tuple(expected)}"
                for name, found, expected in sorted(info["mismatched_keys"])
            ]
        if faults:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} are not those of the {cls.__name__} of its config: "
                f"{'; '.join(faults[:3])}{f'; and {len(faults) - 3} more' if len(faults) > 3 else ''}. Fetch it again."
            )
        return (model, info) if output_loading_info else model
