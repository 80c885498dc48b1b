"""What every floor stands on: checks of arguments, random draws, precision."""
