"""Answers to the requests of the cloud: a frame that is spooled like any other, or a refusal with its reason."""
