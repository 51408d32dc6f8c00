"""Build a multi-task model for training: from an encoder or a trained model, frozen in part, or with LoRA."""
