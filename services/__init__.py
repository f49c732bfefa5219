"""The services, the stack that starts them and the command.

The only place where models and streams meet; neither of the two knows it.
"""
