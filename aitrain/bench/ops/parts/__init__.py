"""One module per part of the benchmark; `cases(small)` yields its cases, headline shapes first."""
