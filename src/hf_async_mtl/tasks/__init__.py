"""The types of task: one file each, found through `hf_async_mtl.tasks.registry`."""
