"""Networks of the representation diffusion model (RDM), one file each."""
