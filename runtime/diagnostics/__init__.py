"""Facts about machine and model: doctor, self-test, benchmark, model facts."""
