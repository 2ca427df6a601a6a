"""Published weights, in and out."""

from jaxgen.weights.pipelines import load

__all__ = ["load"]
