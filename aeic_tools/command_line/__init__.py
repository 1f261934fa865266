"""The commands of ``aeic`` and their options, one module for each group. Other modules do the work."""
