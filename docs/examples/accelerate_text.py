"""accelerate on cached text: accelerate launch accelerate_text.py stories.zarr   (pip install accelerate)"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import logitcache
from logitcache.methods import linear_loss, make_objective
from logitcache.models.language import load_language_network

accelerator = Accelerator(gradient_accumulation_steps=2)
student = load_language_network("llama:hidden=48,layers=3,heads=4,kv_heads=2", 512).module
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
data = logitcache.PackedDataset(sys.argv[1])  # map-style: accelerate divides it among processes
loader = DataLoader(data, batch_size=2, shuffle=True, collate_fn=logitcache.collate_packed)
student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
objective = make_objective("kd", {"temperature": 1, "tail": "bucket"}, ce_weight=0, kd_weight=1)
for epoch in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3):
    total = rows = 0
    for batch in loader:
        with accelerator.accumulate(student):
            output = student(batch["input_ids"], batch["position_ids"], batch["documents"])
            states, targets = output.states[batch["keep"]], batch["labels"][:, 1:][batch["keep"][:, :-1]]
            terms = linear_loss(objective, states, output.head, batch["rows"], targets)
            accelerator.backward(terms.total)
            accelerator.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        total, rows = total + float(terms.total) * terms.rows, rows + terms.rows
    accelerator.print(f"epoch {epoch + 1}: train_loss {total / rows:.3f}")
