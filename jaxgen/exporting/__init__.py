"""What other tools open: the forms that a run goes out in, and what draws without jaxgen."""
