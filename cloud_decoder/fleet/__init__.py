"""More than one machine: the same worker and the same front end, placed, restarted and scaled by Ray (extra ``fleet``).

Nothing outside this folder imports it. Kubernetes runs the same roles without it (deploy/k8s).
"""
