"""Console logs of a kernel that died: lines, reports, decoding, verdict."""
