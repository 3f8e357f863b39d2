"""The machine: files, devices, processes, progress. Nothing here knows about distillation."""
