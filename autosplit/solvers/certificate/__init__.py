"""The certificate: what no contiguous plan can beat, proved."""
