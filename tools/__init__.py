"""What stands behind dev.py: the host's set-up, a server, a runner. No part of the pack."""
