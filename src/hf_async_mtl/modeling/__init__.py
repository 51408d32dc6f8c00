"""The model and its configuration. The modules of this folder travel with a model that is pushed to the Hub."""

from transformers import AutoConfig, AutoModel

from .configuration_multitask import MultiTaskConfig
from .modeling_multitask import MultiTaskModel

AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig, exist_ok=True)
AutoModel.register(MultiTaskConfig, MultiTaskModel, exist_ok=True)
# `save_pretrained` copies the modeling code beside the weights: `trust_remote_code` loads it without this package.
MultiTaskConfig.register_for_auto_class()
MultiTaskModel.register_for_auto_class("AutoModel")
