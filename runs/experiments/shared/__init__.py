"""What several experiments share: rules, arms and budgets."""
