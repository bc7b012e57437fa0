"""The methods: how two models exchange messages, and the loss that a student minimises."""
