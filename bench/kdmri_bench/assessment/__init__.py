"""What the people who decide about a compressed network are told: `kdmri-edge assess`."""
