"""What `kdmri::data_consistency` becomes in each target; one module per target."""
