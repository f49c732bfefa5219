"""The generator: user history in, k distinct valid items out."""
