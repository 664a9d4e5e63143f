"""The policy at a service that speaks the Tinker protocol."""
