"""Training that can be killed and resumed exactly, and the records it leaves."""
