"""The durable spool between encoding and the uplink."""
