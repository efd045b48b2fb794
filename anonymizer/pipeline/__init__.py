"""The journey of a record through a shard."""
