"""A graph of PyTorch 2, and the runtime that takes it: rows that load nothing heavy."""

from kdmri_edge.runtime import Backend, Target

BACKEND = Backend(
    name="acme-runtime",
    title="Acme runtime",
    session="acme_recon.session:ProgramSession",
    library="torch",
    extra="train",
    devices=("cpu",),
    precisions=("f32", "f16"),
)

TARGET = Target(
    name="acme-program",
    graph_file="model.pt2",
    exporter="acme_recon.exporter:write",
    runs_on=("acme-runtime",),
    precisions=("f32", "f16"),
)
