"""What people see: the running study, summaries, plans and budgets, in a terminal and as pages."""
