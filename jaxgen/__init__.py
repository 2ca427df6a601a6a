"""jaxgen: every method by which machines make images, pure-functional, in JAX and Flax."""

__version__ = "0.1.0"
