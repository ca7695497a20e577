"""What people and machines see of a run: all reports are made from the one results document of `judge.summarise`."""
