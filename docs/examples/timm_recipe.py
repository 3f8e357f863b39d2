"""timm's model, optimizer, schedule and EMA: python timm_recipe.py fashion.zarr   (pip install timm)"""

import sys

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

import logitcache

epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 6
loader = logitcache.Loader(sys.argv[1], batch_size=64, image_size=32, device="auto")
torch.manual_seed(0)
student = timm.create_model("resnet10t", num_classes=len(loader.data.classes)).to(loader.device)
optimizer = create_optimizer_v2(student, opt="lamb", lr=5e-3, weight_decay=0.02)
schedule = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=1, warmup_lr_init=1e-4)
average, smooth, distill = ModelEmaV3(student, decay=0.99), LabelSmoothingCrossEntropy(0.1), logitcache.get_loss("kd")
for epoch in range(epochs):
    right = 0
    schedule.step(epoch)
    for batch in loader:
        logits = student(batch.inputs)
        loss = 0.5 * smooth(logits, batch.labels) + 0.5 * distill(logits, batch.logits, batch.labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(student)
        right += int((logits.argmax(1) == batch.labels).sum())
    print(f"epoch {epoch + 1}: {right / len(loader.data):.1%} of the training images right")
loader.close()
