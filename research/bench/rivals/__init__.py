"""Other people's trainers on our workloads; run as scripts by a Python that has torch."""
