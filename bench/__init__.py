"""What kbatchd costs: one program a question, and the rig they share."""
