"""`python -m kdmri_edge`, which is also what torchrun starts."""

from kdmri_edge.cli import run

if __name__ == "__main__":
    run()
