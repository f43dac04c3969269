"""Run one training on both engines and say where they agree and where they first do not."""
