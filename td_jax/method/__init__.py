"""What the paper is about: how two models talk, and what a student minimises."""
