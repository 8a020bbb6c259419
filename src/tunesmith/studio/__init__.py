"""The web app that reads the event log of runs. Not built yet."""
