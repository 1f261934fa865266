"""The training loop: recipes, schedule, optimiser, rate control, run log."""
