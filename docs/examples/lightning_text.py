"""Lightning on cached text: python lightning_text.py stories.zarr   (pip install lightning)"""

import sys

import lightning
import torch
from torch.utils.data import DataLoader

import logitcache
from logitcache.methods import linear_loss, make_objective
from logitcache.models.language import load_language_network


class Distilled(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.student = load_language_network("llama:hidden=48,layers=3,heads=4,kv_heads=2", 512).module
        self.objective = make_objective("kd", {"temperature": 1, "tail": "bucket"}, ce_weight=0, kd_weight=1)

    def training_step(self, batch):
        output = self.student(batch["input_ids"], batch["position_ids"], batch["documents"])
        states, targets = output.states[batch["keep"]], batch["labels"][:, 1:][batch["keep"][:, :-1]]
        terms = linear_loss(self.objective, states, output.head, batch["rows"], targets)
        self.log("train_loss", terms.total.detach(), prog_bar=True, batch_size=terms.rows)
        return terms.total

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)


data = logitcache.PackedIterableDataset(sys.argv[1])  # packs anew in each epoch, and divides it among processes itself
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = lightning.Trainer(max_epochs=epochs, gradient_clip_val=1.0, use_distributed_sampler=False, **quiet)
trainer.fit(Distilled(), DataLoader(data, batch_size=4, collate_fn=logitcache.collate_packed))
print({name: float(value) for name, value in trainer.callback_metrics.items()})
