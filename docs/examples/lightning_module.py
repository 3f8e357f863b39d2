"""Lightning: python lightning_module.py fashion.zarr   (pip install lightning)"""

import sys

import lightning
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import logitcache
from logitcache.data import load_data
from logitcache.models import load_network


class Distilled(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.distill = load_network("resnet8", 10).module, logitcache.get_loss("kd")

    def on_train_epoch_start(self):
        data.set_epoch(self.current_epoch)  # epoch e shows view e mod V, to teacher and student alike

    def training_step(self, batch):
        images, labels, teacher = batch
        logits = self.student(images.float().expand(-1, 3, -1, -1) / 255)
        self.log("train_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)
        return 0.1 * F.cross_entropy(logits, labels) + 0.9 * self.distill(logits, teacher, labels).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


data = logitcache.wrap(load_data("fashion-mnist-mini"), sys.argv[1])
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 6
trainer = lightning.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Distilled(), DataLoader(data, batch_size=64, shuffle=True))
print({name: float(value) for name, value in trainer.callback_metrics.items()})
