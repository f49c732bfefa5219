"""The services, the stack that starts them and the command: the only place where models and streams meet."""
