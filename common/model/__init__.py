"""The base model, the adapter on it, the optimisers and where they compute. No records, no privacy."""
