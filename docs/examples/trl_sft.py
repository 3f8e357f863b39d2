"""TRL's SFTTrainer on cached text, in one process: python trl_sft.py answers.zarr   (pip install trl)

The cache is of data in TRL's forms, a line with `prompt` and `completion`, or with `messages`:
logitcache dump --teacher hf:stories-mini --data jsonl:answers.jsonl --rows all --out answers.zarr
"""

import sys

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import logitcache
from logitcache.methods import linear_loss, make_objective
from logitcache.models.language import load_language_network, load_tokenizer


class DistilledSFT(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ARG002
        keep, where = inputs["keep"], {"position_ids": inputs["position_ids"], "use_cache": False}
        states = model.base_model(inputs["input_ids"], **where)[0][keep]  # positions keep documents apart
        targets = inputs["labels"][:, 1:][keep[:, :-1]]
        terms = linear_loss(objective, states, model.get_output_embeddings().weight, inputs["rows"], targets)
        return terms.total * terms.rows / num_items_in_batch


objective = make_objective("kd", {"temperature": 1, "tail": "bucket"}, ce_weight=0.5, kd_weight=0.5)
student = load_language_network("llama:hidden=48,layers=3,heads=4,kv_heads=2", 512).module.model
data = logitcache.PackedDataset(sys.argv[1], loss_on="completion")  # "assistant" is TRL's assistant_only_loss
more = {"num_train_epochs": int([*sys.argv, 3][2]), "per_device_train_batch_size": 2, "logging_steps": 1, "bf16": False}
more |= {"learning_rate": 3e-3, "save_strategy": "no", "report_to": "none", "loss_type": "nll"}
settings = SFTConfig("runs/trl", dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, **more)
numbers = Dataset.from_dict({"number": range(len(data))})
collate = lambda items: logitcache.collate_packed([data[one["number"]] for one in items])  # noqa: E731
trainer = DistilledSFT(student, settings, collate, numbers, processing_class=load_tokenizer("hf:stories-mini"))
trainer.train()
print([round(one["loss"], 3) for one in trainer.state.log_history if "loss" in one])
