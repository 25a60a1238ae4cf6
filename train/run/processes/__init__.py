"""The processes of a run: what each computes, what they exchange, and how they divide the weights."""
