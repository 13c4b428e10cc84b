"""What people do without us: each a program that `benchmarks.versus` runs beside a build."""
