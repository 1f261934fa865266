"""The web kit that both services stand on: HTTP server, problems, request bodies, logs, settings, tracing."""
