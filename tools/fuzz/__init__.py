"""Bad input of every kind, by a seed: what none of it may do is end the host, hang it, or write where it should not."""
