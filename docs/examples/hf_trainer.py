"""Hugging Face's Trainer: python hf_trainer.py fashion.zarr   (pip install 'transformers[torch]')"""

import sys

import torch
from torch.nn import functional as F
from torch.utils.data import default_collate
from transformers import Trainer, TrainingArguments

import logitcache
from logitcache.data import load_data
from logitcache.models import load_network


class Distilled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.distill = load_network("resnet8", 10).module, logitcache.get_loss("kd")

    def forward(self, images, labels, teacher):
        logits = self.student(images.expand(-1, 3, -1, -1) / 255)
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * self.distill(logits, teacher, labels).mean()
        return {"loss": loss, "logits": logits}


def collate(items):
    images, labels, teacher = default_collate(items)
    return {"images": images.float(), "labels": labels, "teacher": teacher}


data = logitcache.wrap(load_data("fashion-mnist-mini"), sys.argv[1])
more = {"num_train_epochs": int([*sys.argv, 6][2]), "per_device_train_batch_size": 64, "learning_rate": 1e-3}
settings = TrainingArguments("runs/hf", remove_unused_columns=False, **more)
# The trainer tells the data set which epoch it is: epoch e shows view e mod V, to teacher and student alike.
print(Trainer(Distilled(), settings, collate, data).train().metrics)
