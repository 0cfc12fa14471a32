"""The reference guests: kernels and initial RAM disks from Debian's archive, and the tools they need."""
