"""What audits and attacks found: scores of canaries and of patients of nobody, and what follows from them alone."""
