"""Knowledge distillation: KD-MRI's three steps (Murugesan et al., MIDL 2020), made resumable."""
