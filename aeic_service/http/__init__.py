"""HTTP for both services: the server, the rules of its answers, request bodies, and the pages for people."""
