"""Networks, files and a runtime of Acme for kdmri-edge."""
