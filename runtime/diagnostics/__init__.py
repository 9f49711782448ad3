"""What a user can ask about machine and model: doctor, self-test, benchmark, model facts."""
