"""The paper's tables: their definitions, their runs, and how each method's hyperparameters were chosen."""
