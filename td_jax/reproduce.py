"""The paper's tables: what to run, what is missing, the paper's numbers beside ours."""
