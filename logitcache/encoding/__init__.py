"""Logits to rows and back, on the device where they are: what is lost on the way is chosen here and nowhere else."""

from logitcache.encoding.full import PRECISIONS, FullEncoding

__all__ = ["PRECISIONS", "FullEncoding"]
