"""The first command: two agents learn while the task changes, and one of them stops learning."""
