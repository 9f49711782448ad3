"""`dslite complete`: one answer or a batch, from the local engine or a server, as text or JSON."""
