"""Agents of finished, interrupted and killed runs: loaded from their checkpoints, evaluated, filmed."""
