"""What every command stands on: run directory, tracking, processes, command line, devices. It knows no models."""
