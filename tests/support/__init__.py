"""What the tests share: tiny models, scripted drafters, the matrix, mutants."""
