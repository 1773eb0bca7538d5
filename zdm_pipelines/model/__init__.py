"""Words: the frozen values, states and errors that every other room speaks in."""
