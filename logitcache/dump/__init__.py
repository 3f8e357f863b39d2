"""`logitcache dump`: run the teacher once and store its logits."""
