"""From a module's training_step to a program of many clients' steps."""
