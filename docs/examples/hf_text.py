"""Hugging Face's Trainer on cached text: python hf_text.py stories.zarr   (pip install 'transformers[torch]')"""

import sys

import torch
from transformers import Trainer, TrainingArguments

import logitcache
from logitcache.methods import linear_loss, make_objective
from logitcache.models.language import load_language_network


class Distilled(torch.nn.Module):
    accepts_loss_kwargs = True  # the trainer passes num_items_in_batch: labels of a whole step, over its micro-batches

    def __init__(self) -> None:
        super().__init__()
        self.student = load_language_network("llama:hidden=48,layers=3,heads=4,kv_heads=2", 512).module
        self.objective = make_objective("kd", {"temperature": 1, "tail": "bucket"}, ce_weight=0.1, kd_weight=0.9)

    def forward(self, rows, keep, labels, num_items_in_batch=None, **inputs):
        output = self.student(**inputs)  # input_ids, position_ids, documents
        targets = labels[:, 1:][keep[:, :-1]]
        terms = linear_loss(self.objective, output.states[keep], output.head, rows, targets)
        return {"loss": terms.total * terms.rows / (num_items_in_batch or terms.rows)}


data = logitcache.PackedDataset(sys.argv[1])
more = {"num_train_epochs": int([*sys.argv, 3][2]), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
more |= {"learning_rate": 3e-3, "max_grad_norm": 1.0, "logging_steps": 5, "save_strategy": "no", "report_to": "none"}
# Columns that the model does not name (`rows`, `keep`) must stay; `documents` keeps the stories of a sequence apart.
settings = TrainingArguments("runs/hf", remove_unused_columns=False, **more)
trainer = Trainer(Distilled(), settings, logitcache.collate_packed, data)
trainer.train()
print([round(one["loss"], 3) for one in trainer.state.log_history if "loss" in one])
