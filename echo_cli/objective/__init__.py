"""The ECHO objective as pure functions on tensors."""
