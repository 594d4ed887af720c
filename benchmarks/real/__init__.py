"""The benchmark on real models: suites, peers, a resumable run and its report."""
