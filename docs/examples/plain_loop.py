"""A loop of your own: python plain_loop.py fashion.zarr

Batches come in the order and with the pixels of `logitcache train`, logits from memory.
"""

import sys

import torch
from torch.nn import functional as F

import logitcache
from logitcache.models import load_network

loader = logitcache.Loader(sys.argv[1], batch_size=64, device="auto")
student = load_network("resnet8", len(loader.data.classes)).module.to(loader.device)
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
distill = logitcache.get_loss("rld")  # any method; returns [B], or 0-dim where it couples the batch
for epoch in range(int(sys.argv[2]) if len(sys.argv) > 2 else 6):
    right = 0
    for batch in loader:
        logits = student(batch.inputs)
        loss = F.cross_entropy(logits, batch.labels) + distill(logits, batch.logits, batch.labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right += int((logits.argmax(1) == batch.labels).sum())
    print(f"epoch {epoch + 1}: {right / len(loader.data):.1%} of the training images right")
loader.close()
