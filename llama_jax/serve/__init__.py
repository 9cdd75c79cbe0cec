"""An HTTP server that speaks OpenAI's API, and a page to talk to the model."""
