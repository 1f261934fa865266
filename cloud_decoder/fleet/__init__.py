"""More than one machine: Ray places, restarts and scales the worker and the front end (extra ``fleet-ray``).

Only ``__main__`` imports it, for ``--ray``. Kubernetes runs the same roles without it (deploy/k8s).
"""
