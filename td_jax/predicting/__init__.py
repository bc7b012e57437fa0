"""The student at work: what a person has goes in, what it means comes out."""
