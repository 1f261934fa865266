"""HTTP code that both services share: server, problems, request bodies, logs, settings, tracing."""
