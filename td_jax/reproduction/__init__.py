"""The paper's tables: what they are made of, their runs, and how each method's knobs were chosen."""
