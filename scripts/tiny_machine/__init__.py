"""What `scripts/pretrain_tiny_machine.py` is made of: demonstrations, the probe of extraction, and the model card."""
