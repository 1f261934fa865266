"""Losses: the picture loss, the discriminator, distillation, and the decoder's prior."""
