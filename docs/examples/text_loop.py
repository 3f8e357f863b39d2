"""A loop of your own over cached text: python text_loop.py stories.zarr

Logits of all rows never exist at once: `linear_loss` takes hidden states and the last layer, a few hundred rows at a time.
"""

import sys

import torch

import logitcache
from logitcache.methods import linear_loss, make_objective
from logitcache.models.language.load import load_language_network

loader = logitcache.Loader(sys.argv[1], batch_size=4, device="auto")  # documents of a batch, packed into sequences
vocabulary = len(loader.data.classes)
student = load_language_network("llama:hidden=48,layers=3,heads=4,kv_heads=2", vocabulary).module.to(loader.device)
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
objective = make_objective("kd", {"temperature": 1, "tail": "bucket"}, ce_weight=0, kd_weight=1)  # or any other method
for epoch in range(int(sys.argv[2]) if len(sys.argv) > 2 else 14):
    right = rows = 0
    for batch in loader:
        output = student(**batch.inputs)  # hidden states [B, L, H], and the head that makes logits of them
        states = output.states[batch.keep]  # of the positions that predict a target, [R, H]
        terms = linear_loss(objective, states, output.head, batch.logits, batch.labels)
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        right, rows = right + int(terms.right), rows + terms.rows
    print(f"epoch {epoch + 1}: {right / rows:.1%} of the training tokens right")
loader.close()
