"""The routes, one module for each subject. Each ``router(...)`` takes the services that its routes use."""
