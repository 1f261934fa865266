"""What both services stand on: HTTP (in http/), budgets, certificates, logs, settings, tracing."""
