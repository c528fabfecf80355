"""The first command: two agents whose task changes, one plain and one projected and re-warmed."""
