"""Images through the same process, loop, trainer and commands as texts: data, checkpoint, recipe, samples, scores."""
