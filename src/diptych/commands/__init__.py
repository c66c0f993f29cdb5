"""What each command of `diptych` does. Heavy imports happen inside the functions: `diptych --help` answers at once."""
