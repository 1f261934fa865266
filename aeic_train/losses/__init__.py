"""What training minimises: picture losses, the discriminator, distillation, the decoder's prior."""
